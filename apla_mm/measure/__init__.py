"""What is kept for backward, and what a step costs and sends. Needs torch alone."""

from .compared_methods import ComparedMethod, compared_methods
from .fake_step import CountedStep, Fit, PeakBytes, count_peak, count_step, fake_tensors, largest_batch
from .saved_tensors import SavedTensors
from .step_cost import StepCost, TrainingStep, interleaved_times, peak_bytes, step_cost
from .traffic import CountedBuckets, Traffic, gradient_traffic

__all__ = [
    "ComparedMethod",
    "CountedBuckets",
    "CountedStep",
    "Fit",
    "PeakBytes",
    "SavedTensors",
    "StepCost",
    "Traffic",
    "TrainingStep",
    "compared_methods",
    "count_peak",
    "count_step",
    "fake_tensors",
    "gradient_traffic",
    "interleaved_times",
    "largest_batch",
    "peak_bytes",
    "step_cost",
]
