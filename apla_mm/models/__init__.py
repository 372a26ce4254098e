"""Models for OpenMMLab's registry."""

from .backbones import APLAViT

__all__ = ["APLAViT"]
