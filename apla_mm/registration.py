"""Puts the package's parts into mmengine's root registries, where every OpenMMLab scope finds them."""

from mmengine.registry import HOOKS, LOOPS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from timm.layers import LayerNorm2d

from .data.data_check_hook import DataCheckHook
from .models import APLAViT, SimpleFeaturePyramid
from .options import launching  # noqa: F401  registers itself, as do the next ones
from .runs import checkpoint_reader, file_backend  # noqa: F401
from .runs.atomic_checkpoint_hook import AtomicCheckpointHook
from .runs.finite_loss_hook import FiniteLossHook
from .runs.resume_check_hook import ResumeCheckHook
from .runs.saved_buffers_hook import SavedBuffersHook
from .runs.stop_signal_hook import StopSignalHook
from .runs.train_loop import ResumableTrainLoop
from .tuning import fsdp  # noqa: F401
from .tuning.apla_hook import APLAHook
from .tuning.optim_wrapper import BFloat16OptimWrapper
from .tuning.optim_wrapper_constructor import TrainableOptimWrapperConstructor
from .tuning.training_log_hook import TrainingLogHook

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
