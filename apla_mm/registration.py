"""Puts the package's parts into mmengine's root registries, where every OpenMMLab scope finds them."""

from mmengine.registry import HOOKS, MODELS

from .engine import checkpoint_reader  # noqa: F401  registers itself
from .engine.hooks import APLAHook, DataCheckHook
from .models import APLAViT

MODELS.register_module(module=APLAViT)
HOOKS.register_module(module=APLAHook)
HOOKS.register_module(module=DataCheckHook)
