"""Models for OpenMMLab's registry."""

from .backbones import APLAViT
from .necks import SimpleFeaturePyramid

__all__ = ["APLAViT", "SimpleFeaturePyramid"]
