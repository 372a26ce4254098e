"""What trains, what is kept for backward, and what a step costs. Needs torch alone."""

from ..tuning.trainable import TrainableRow, format_table, trainable_table
from .saved_tensors import SavedTensors
from .step_cost import StepCost, TrainingStep, interleaved_times, peak_bytes, step_cost
from .traffic import CountedBuckets, Traffic, gradient_traffic
from .tuning_methods import TuningMethod, tuning_methods

__all__ = [
    "CountedBuckets",
    "SavedTensors",
    "StepCost",
    "Traffic",
    "TrainableRow",
    "TrainingStep",
    "TuningMethod",
    "format_table",
    "gradient_traffic",
    "interleaved_times",
    "peak_bytes",
    "step_cost",
    "trainable_table",
    "tuning_methods",
]
