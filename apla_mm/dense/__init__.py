"""Heads' losses and labels at full image size without tensors of full size, on torch alone: exact."""

from .cross_entropy import resized_cross_entropy
from .labels import averaged_labels, resized_labels
from .resized_logits import Crop, Flip, Resize, ResizedLogits, Windows
from .strip_sums import strip_sums

__all__ = [
    "Crop",
    "Flip",
    "Resize",
    "ResizedLogits",
    "Windows",
    "averaged_labels",
    "resized_cross_entropy",
    "resized_labels",
    "strip_sums",
]
