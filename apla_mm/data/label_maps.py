"""Checks of a segmentation data set's images and label maps, with errors that name the file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .folders import is_local
from .reading import DataError, check_evenly, read_image


def check_segmentation(
    infos: Sequence[Mapping[str, Any]], num_classes: int, time_limit: float | None, unreadable: list[str] | None = None
) -> int:
    """Check that images and label maps can be read, match in size, and hold known classes only.

    Files are all looked for first. Then they are read in an order spread evenly over the data set, by threads, until
    the time is over.

    Args:
        infos: What mmseg's data sets say of each sample (``img_path``, ``seg_map_path``, ``reduce_zero_label``,
            ``label_map``).
        num_classes: Number of classes.
        time_limit: Seconds, None for all samples.
        unreadable: See :func:`check_evenly`.

    Returns:
        How many samples were read.

    Raises:
        DataError: Something is wrong with a sample.
    """
    for info in infos:
        for what, key in (("image", "img_path"), ("label map", "seg_map_path")):
            path = info.get(key)
            if path is not None and is_local(path) and not Path(path).is_file():
                raise DataError(f"the {what} '{path}' is missing; '{info['img_path']}' needs it")
    return check_evenly(infos, lambda info: _check_sample(info, num_classes), time_limit, unreadable)


def _check_sample(info: Mapping[str, Any], num_classes: int) -> None:
    image = read_image(info["img_path"], "image", flag="color", backend="cv2")
    if info.get("seg_map_path") is None:
        return
    path = info["seg_map_path"]
    labels = read_image(path, "label map", flag="unchanged", backend="pillow").squeeze()
    if labels.ndim != 2:
        raise DataError(f"the label map '{path}' has {labels.shape[-1]} channels: expected one, of class indices")
    if labels.shape != image.shape[:2]:
        raise DataError(
            f"the label map '{path}' is {labels.shape[1]} x {labels.shape[0]} and its image '{info['img_path']}' "
            f"{image.shape[1]} x {image.shape[0]}: expected equal sizes"
        )
    first = 1 if info.get("reduce_zero_label") else 0
    classes = info["label_map"].keys() if info.get("label_map") else range(num_classes)
    known = {*(c + first for c in classes), 255, *range(first)}
    unknown = sorted(set(np.unique(labels).tolist()) - known)
    if unknown:
        ignored = "0 and 255 are ignored" if first else "255 is ignored"
        raise DataError(
            f"the label map '{path}' holds the labels {unknown[:8]}: expected {min(classes) + first} to "
            f"{max(classes) + first} for {len(classes)} classes ({ignored}); correct the file, the classes, or "
            "reduce_zero_label"
        )
