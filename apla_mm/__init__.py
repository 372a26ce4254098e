"""APLA for dense prediction. Importing the package loads torch alone, and changes nothing of what others have.

Where mmengine is installed, the package's parts are registered with it as soon as both are imported, in either order.
"""

import sys
from importlib.util import find_spec

from .method import PartialLinear, Report, adapt, merge, register_attention, select_channels

__version__ = "0.1.0"

__all__ = ["PartialLinear", "Report", "adapt", "merge", "register_attention", "select_channels"]
if find_spec("safetensors") is not None:
    from .tasks import TaskSwitch, task

    __all__ += ["TaskSwitch", "task"]

if "mmengine" in sys.modules:
    from . import registration  # noqa: F401
elif find_spec("mmengine") is not None:
    from importlib import import_module

    from wrapt import when_imported

    def _register(package: object) -> None:
        mmcv = sys.modules.get("mmcv")
        if package is mmcv or not getattr(getattr(mmcv, "__spec__", None), "_initializing", False):
            import_module("apla_mm.registration")  # else mmcv is importing mmengine, and is called next

    for _name in ("mmengine", "mmcv"):
        when_imported(_name)(_register)
