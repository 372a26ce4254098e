"""APLA for dense prediction. Importing the package loads nothing of torch until a name is used, and changes nothing.

Where mmengine is installed, the package's parts are registered with it as soon as both are imported, in either order.
"""

import sys
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .api import load, train
    from .method import PartialLinear, Report, adapt, merge, register_attention, select_channels
    from .tasks import TaskSwitch, task

__version__ = "0.1.0"

__all__ = ["PartialLinear", "Report", "adapt", "merge", "register_attention", "select_channels"]
#: name -> the room that has it, imported when the name is first used: `apla-mm --help` has no need of torch
_ROOMS = dict.fromkeys(__all__, "apla_mm.method")
if find_spec("safetensors") is not None:
    __all__ += ["TaskSwitch", "task"]
    _ROOMS |= dict.fromkeys(("TaskSwitch", "task"), "apla_mm.tasks")
if find_spec("mmengine") is not None:
    __all__ += ["load", "train"]
    _ROOMS |= dict.fromkeys(("load", "train"), "apla_mm.api")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return getattr(import_module(_ROOMS[name]), name)
    if name in ("delta", "method", "methods", "tasks"):
        return import_module(f"apla_mm.{name}")
    raise AttributeError(f"module 'apla_mm' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_ROOMS})


if "mmengine" in sys.modules:
    from . import registration  # noqa: F401
elif find_spec("mmengine") is not None:
    from wrapt import when_imported

    def _register(package: object) -> None:
        mmcv = sys.modules.get("mmcv")
        if package is mmcv or not getattr(getattr(mmcv, "__spec__", None), "_initializing", False):
            import_module("apla_mm.registration")  # else mmcv is importing mmengine, and is called next

    for _name in ("mmengine", "mmcv"):
        when_imported(_name)(_register)
