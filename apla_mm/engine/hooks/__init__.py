"""Hooks for mmengine's Runner."""

from .apla_hook import APLAHook
from .atomic_checkpoint_hook import AtomicCheckpointHook
from .data_check_hook import DataCheckHook
from .finite_loss_hook import FiniteLossHook
from .resume_check_hook import ResumeCheckHook
from .saved_buffers_hook import SavedBuffersHook
from .stop_signal_hook import StopSignalHook
from .training_log_hook import TrainingLogHook

__all__ = [
    "APLAHook",
    "AtomicCheckpointHook",
    "DataCheckHook",
    "FiniteLossHook",
    "ResumeCheckHook",
    "SavedBuffersHook",
    "StopSignalHook",
    "TrainingLogHook",
]
