"""What trains, and what is kept for backward. Needs torch alone."""

from .saved_tensors import SavedTensors
from .trainable import TrainableRow, format_table, trainable_table

__all__ = ["SavedTensors", "TrainableRow", "format_table", "trainable_table"]
