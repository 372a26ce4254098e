"""What is kept for backward, and what a step costs and sends. Needs torch alone."""

from .saved_tensors import SavedTensors
from .step_cost import StepCost, TrainingStep, interleaved_times, peak_bytes, step_cost
from .traffic import CountedBuckets, Traffic, gradient_traffic
from .tuning_methods import TuningMethod, tuning_methods

__all__ = [
    "CountedBuckets",
    "SavedTensors",
    "StepCost",
    "Traffic",
    "TrainingStep",
    "TuningMethod",
    "gradient_traffic",
    "interleaved_times",
    "peak_bytes",
    "step_cost",
    "tuning_methods",
]
