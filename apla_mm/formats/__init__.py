"""Finds the format of a folder of data, and makes data sets of it that mmseg and mmdet read."""

import mmengine  # noqa: F401  the package's parts are registered then, and they import from here

from .find import find_data
from .found import FoundData

__all__ = ["FoundData", "find_data"]
