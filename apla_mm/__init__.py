"""APLA for dense prediction: importing the package registers its parts with OpenMMLab, where that is installed."""

from importlib.util import find_spec

from ._torchvision import ensure_torchvision_ops
from .method import PartialLinear, Report, adapt, merge, register_attention

__version__ = "0.1.0"

ensure_torchvision_ops()
if find_spec("mmengine") is not None:
    from . import registration  # noqa: F401

__all__ = ["PartialLinear", "Report", "adapt", "merge", "register_attention"]
if find_spec("safetensors") is not None:
    from .tasks import TaskSwitch, task

    __all__ += ["TaskSwitch", "task"]
