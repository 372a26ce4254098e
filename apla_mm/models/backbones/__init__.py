"""Backbones."""

from .apla_vit import APLAViT

__all__ = ["APLAViT"]
