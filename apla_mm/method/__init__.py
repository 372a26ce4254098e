"""The method: train ``r`` output channels of each attention's projection, freeze the rest. Needs torch alone."""

from .adapt import AdaptedProjection, Report, adapt, count_parameters, merge
from .channels.select import select_channels
from .partial_linear import PartialLinear
from .projections import Projection, find_projections, register_attention

__all__ = [
    "AdaptedProjection",
    "PartialLinear",
    "Projection",
    "Report",
    "adapt",
    "count_parameters",
    "find_projections",
    "merge",
    "register_attention",
    "select_channels",
]
