"""Checks of panoptic data in COCO's format, with errors that name the file and the segment."""

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...text import first_few
from ..reading import DataError, check_evenly, read_image
from .panoptic_file import PanopticFile


class PanopticMap(NamedTuple):
    """A map of segment ids, and what the annotation file says of it: ids, and (width, height)."""

    path: str
    ids: frozenset[int]
    size: tuple[int, int]


def is_panoptic(cls: type | None) -> bool:
    """Whether a class of data sets reads panoptic files as mmdet's CocoPanopticDataset does."""
    module = sys.modules.get("mmdet.datasets.coco_panoptic")  # without mmdet there is no such class
    if module is None or not isinstance(cls, type) or not issubclass(cls, module.CocoPanopticDataset):
        return False
    return getattr(cls, "parse_data_info", None) is module.CocoPanopticDataset.parse_data_info


def check_panoptic_file(
    path: str, metainfo: Mapping[str, Any], *, truths: Sequence[str] = (), backend_args: Any = None
) -> str:
    """Check that a panoptic annotation file is in order and fits its data set.

    Args:
        path: The file.
        metainfo: The data set's.
        truths: The files that predictions for this data set are compared with.
        backend_args: Where files are kept, as in mmengine's data sets.

    Returns:
        What the log may say of it.

    Raises:
        DataError: Something is wrong.
    """
    file = PanopticFile(path, backend_args)
    file.check_classes(metainfo)
    for truth in truths:
        scored = file if truth == path else PanopticFile(truth, backend_args)
        if missing := [image["file_name"] for key, image in file.images.items() if key not in scored.images]:
            raise DataError(f"'{truth}', which predictions are scored by, lacks the images {first_few(missing, 3)}")
        scored.check_classes(metainfo)
        scored.check_scored()
    return file.summary()


def check_maps(maps: Sequence[PanopticMap], time_limit: float | None, backend_args: Any = None) -> int:
    """Check that maps can be read, have the size of their images, and hold the segments of the annotation file.

    Args:
        maps: What to check.
        time_limit: Seconds, None for all.
        backend_args: Where they are kept, as in mmengine's data sets.

    Returns:
        How many were checked.

    Raises:
        DataError: One does not.
    """

    def check(one: PanopticMap) -> None:
        colours = read_image(one.path, "panoptic map", backend_args, flag="unchanged", backend="cv2")
        if colours.dtype != np.uint8 or colours.ndim != 3 or colours.shape[2] != 3:
            kind = f"{colours.dtype} with {1 if colours.ndim == 2 else colours.shape[2]} channels"
            raise DataError(
                f"the panoptic map '{one.path}' is {kind}: expected RGB of 8 bits, R + 256 G + 256**2 B a segment's id"
            )
        height, width = colours.shape[:2]
        if (width, height) != one.size:
            raise DataError(
                f"the panoptic map '{one.path}' has {width} x {height} pixels and its image {one.size[0]} x "
                f"{one.size[1]}: expected the same"
            )
        blue, green, red = np.moveaxis(colours.astype(np.int64), 2, 0)  # as OpenCV reads it
        found = set(np.unique(red + 256 * green + 256**2 * blue).tolist()) - {0}
        if found != one.ids:
            here = first_few(map(str, sorted(found - one.ids)), 3)
            there = first_few(map(str, sorted(one.ids - found)), 3)
            problem = f"has the segments {here}, which it does not list" if here else f"has no pixel of {there}"
            raise DataError(
                f"the panoptic map '{one.path}' differs from its annotation file: it {problem}; expected the file's "
                "segments, and 0 for pixels of none"
            )

    return check_evenly(maps, check, time_limit)
