"""Puts the package's parts into mmengine's root registries, where every OpenMMLab scope finds them."""

from importlib import import_module

from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import (
    HOOKS,
    LOOPS,
    METRICS,
    MODEL_WRAPPERS,
    MODELS,
    OPTIM_WRAPPER_CONSTRUCTORS,
    OPTIM_WRAPPERS,
    STRATEGIES,
)
from timm.layers import LayerNorm2d
from wrapt import when_imported

from .compare.probes.nearest_neighbours_loop import NearestNeighboursLoop
from .compare.scores.image_areas import ImageAreas
from .compare.scores.image_hits import ImageHits
from .compare.trials.record_hook import RecordHook
from .data.data_check_hook import DataCheckHook
from .loading import checkpoint_reader  # noqa: F401  a loader, under a name of its own
from .loading.checkpoint_reader_hook import CheckpointReaderHook
from .loading.weights_check_hook import WeightsCheckHook
from .models import APLAViT, SimpleFeaturePyramid
from .options.launching import CPUDistributedDataParallel
from .runs import file_backend  # noqa: F401  a backend, under a name of its own
from .runs.hooks.atomic_checkpoint_hook import AtomicCheckpointHook
from .runs.hooks.finite_loss_hook import FiniteLossHook
from .runs.hooks.resume_check_hook import ResumeCheckHook
from .runs.hooks.saved_buffers_hook import SavedBuffersHook
from .runs.hooks.stop_signal_hook import StopSignalHook
from .runs.train_loop import ResumableTrainLoop
from .tuning.apla_hook import APLAHook
from .tuning.delta_hook import DeltaHook
from .tuning.fsdp import APLAFSDPStrategy, APLAFullyShardedDataParallel
from .tuning.heads.lean_heads_hook import LeanHeadsHook
from .tuning.heads.lean_inference_hook import LeanInferenceHook
from .tuning.heads.mask_annealing_hook import MaskAnnealingHook
from .tuning.optimizers.optim_wrapper import BFloat16OptimWrapper
from .tuning.optimizers.optim_wrapper_constructor import TrainableOptimWrapperConstructor
from .tuning.trained.trainable_check_hook import TrainableCheckHook
from .tuning.training_log_hook import TrainingLogHook
from .tuning.tuning_hook import TuningHook

PARTS = {
    HOOKS: (
        APLAHook,
        AtomicCheckpointHook,
        CheckpointReaderHook,
        DataCheckHook,
        DeltaHook,
        FiniteLossHook,
        LeanHeadsHook,
        LeanInferenceHook,
        MaskAnnealingHook,
        RecordHook,
        ResumeCheckHook,
        SavedBuffersHook,
        StopSignalHook,
        TrainableCheckHook,
        TrainingLogHook,
        TuningHook,
        WeightsCheckHook,
    ),
    LOOPS: (NearestNeighboursLoop, ResumableTrainLoop),
    METRICS: (ImageAreas, ImageHits),
    MODELS: (APLAViT, SimpleFeaturePyramid),
    MODEL_WRAPPERS: (APLAFullyShardedDataParallel, CPUDistributedDataParallel),
    OPTIM_WRAPPER_CONSTRUCTORS: (TrainableOptimWrapperConstructor,),
    OPTIM_WRAPPERS: (BFloat16OptimWrapper,),
    STRATEGIES: (APLAFSDPStrategy,),
}

for registry, parts in PARTS.items():
    for part in parts:
        registry.register_module(module=part)
# so that `_base_` may name apla_mm::seg/apla_vitb_ade.py. mmengine looks first for a distribution of the name on the
# right: as there is none, it takes the folder of this very module, installed or not
MODULE2PACKAGE.setdefault("apla_mm", __name__)
MODELS.register_module(name="LN2d", module=LayerNorm2d)  # for norm_cfg, under the name that mmpretrain gives its own
# after mmseg's, from which it is derived: mmseg loads when a config's scope asks for it, and not before
when_imported("mmseg.datasets.basesegdataset")(lambda _: import_module("apla_mm.formats.label_maps.seg_list_dataset"))
