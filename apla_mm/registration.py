"""Puts the package's parts into mmengine's root registries, where every OpenMMLab scope finds them."""

from mmengine.registry import HOOKS, LOOPS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from timm.layers import LayerNorm2d

from .engine import checkpoint_reader, file_backend, launching, sharding  # noqa: F401  they register themselves
from .engine.hooks import (
    APLAHook,
    AtomicCheckpointHook,
    DataCheckHook,
    FiniteLossHook,
    ResumeCheckHook,
    SavedBuffersHook,
    StopSignalHook,
    TrainingLogHook,
)
from .engine.optim_wrapper import BFloat16OptimWrapper
from .engine.optim_wrapper_constructor import TrainableOptimWrapperConstructor
from .engine.train_loop import ResumableTrainLoop
from .models import APLAViT, SimpleFeaturePyramid

MODELS.register_module(module=APLAViT)
MODELS.register_module(module=SimpleFeaturePyramid)
MODELS.register_module(name="LN2d", module=LayerNorm2d)  # for norm_cfg, under the name that mmpretrain gives its own
HOOKS.register_module(module=APLAHook)
HOOKS.register_module(module=AtomicCheckpointHook)
HOOKS.register_module(module=DataCheckHook)
HOOKS.register_module(module=FiniteLossHook)
HOOKS.register_module(module=ResumeCheckHook)
HOOKS.register_module(module=SavedBuffersHook)
HOOKS.register_module(module=StopSignalHook)
HOOKS.register_module(module=TrainingLogHook)
LOOPS.register_module(module=ResumableTrainLoop)
OPTIM_WRAPPER_CONSTRUCTORS.register_module(module=TrainableOptimWrapperConstructor)
OPTIM_WRAPPERS.register_module(module=BFloat16OptimWrapper)
