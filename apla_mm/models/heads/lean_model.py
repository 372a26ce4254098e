"""All of a model that can do with less: mmseg's decode heads and mmdet's parts, where these toolboxes are loaded."""

import sys
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LeanParts:
    """What was changed in a model.

    Attributes:
        heads: Name of each decode head of mmseg's to the reason why it was left alone; empty for those that were
            changed.
        parts: Names of mmdet's parts that were changed.
        has_detector: Whether a module of the model is one of mmdet's.
    """

    heads: dict[str, str]
    parts: list[str]
    has_detector: bool


def make_model_lean(model: nn.Module, recompute: bool = False) -> LeanParts:
    """Change what can be changed, in place: see :mod:`.lean_heads` and :mod:`.lean_detectors`.

    Args:
        model: A plain model.
        recompute: Keep little of heads, necks and transformer layers, and do the rest again in backward.
    """
    heads: dict[str, str] = {}
    parts: list[str] = []
    if "mmseg.models" in sys.modules:
        from .lean_heads import make_heads_lean

        heads = make_heads_lean(model, recompute)
    has_detector = any(
        cls.__module__.startswith("mmdet.models") for module in model.modules() for cls in type(module).__mro__
    )
    if has_detector:
        from .lean_detectors import make_detector_lean

        parts = make_detector_lean(model, recompute)
    return LeanParts(heads, parts, has_detector)
