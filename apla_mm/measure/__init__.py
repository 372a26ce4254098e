"""What is kept for backward, and what a step costs and sends. Needs torch alone."""

from .fake_step import CountedStep, Fit, PeakBytes, count_peak, count_step, fake_tensors, largest_batch
from .saved_tensors import SavedTensors
from .step_cost import StepCost, TrainingStep, interleaved_times, peak_bytes, step_cost
from .traffic import CountedBuckets, Traffic, gradient_traffic
from .tuning_methods import TuningMethod, tuning_methods

__all__ = [
    "CountedBuckets",
    "CountedStep",
    "Fit",
    "PeakBytes",
    "SavedTensors",
    "StepCost",
    "Traffic",
    "TrainingStep",
    "TuningMethod",
    "count_peak",
    "count_step",
    "fake_tensors",
    "gradient_traffic",
    "interleaved_times",
    "largest_batch",
    "peak_bytes",
    "step_cost",
    "tuning_methods",
]
