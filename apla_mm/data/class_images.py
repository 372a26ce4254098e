"""Checks of images with a class each."""

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..text import first_few, quoted
from .folders import is_local
from .reading import DataError, check_evenly, read_image
from .similar_files import hint_at


def is_classified(cls: type) -> bool:
    """Whether a class of data sets is mmpretrain's or derived from it: its images have classes."""
    module = sys.modules.get("mmpretrain.datasets.base_dataset")  # without mmpretrain there is no such class
    return module is not None and issubclass(cls, module.BaseDataset)


def check_class_images(
    infos: Sequence[Mapping[str, Any]],
    classes: Sequence[str],
    time_limit: float | None,
    backend_args: Any = None,
    unreadable: list[str] | None = None,
    **how: str,
) -> int:
    """Check that images can be read, and that their labels are of the classes.

    Labels and files are all looked at first. Then images are read in an order spread evenly over the data set, by
    threads, until the time is over.

    Args:
        infos: What the data set says of each image: its file ``img_path``, and ``gt_label``, an int or several.
        classes: The data set's.
        time_limit: Seconds, None for all images.
        backend_args: Where they are kept, as in mmengine's data sets.
        unreadable: Takes what is said of files that cannot be read; None raises it.
        how: Arguments of mmcv.imfrombytes.

    Returns:
        How many were read.

    Raises:
        DataError: A label is of no class; an image is missing or cannot be read.
    """
    for info in infos:
        path = info["img_path"]
        if wrong := [label for label in labels_of(info) if not 0 <= label < len(classes)]:
            raise DataError(
                f"the image '{path}' has the label {wrong[0]}, and there are {len(classes)} classes, "
                f"{first_few(classes, 5)}: expected 0 to {len(classes) - 1}"
            )
        if is_local(path, backend_args) and not Path(path).is_file():
            raise DataError(f"the image '{path}' is missing{hint_at(path, 'img_path', '')}")
    return check_evenly(
        [info["img_path"] for info in infos],
        lambda path: read_image(path, "image", backend_args, **how),
        time_limit,
        unreadable,
    )


def labels_of(info: Mapping[str, Any]) -> list[int]:
    """The labels of an image: one, or several, or none where it is not labelled."""
    label = info.get("gt_label")
    if label is None:
        return []
    return [int(label)] if not hasattr(label, "__iter__") else [int(one) for one in label]


def counts_of_classes(labels: Sequence[int], classes: Sequence[str]) -> tuple[str, str]:
    """How many images each class has.

    Args:
        labels: Of all images.
        classes: The data set's.

    Returns:
        What the log says of all, and of the classes without an image; the latter may be empty.
    """
    counts = Counter(labels)
    ordered = sorted(range(len(classes)), key=lambda i: (-counts[i], i))
    told = first_few((f"{classes[i]} {counts[i]:,}" for i in ordered), 10)
    empty = [classes[i] for i in ordered if not counts[i]]
    return f"images of each of {len(classes)} classes: {told}", (
        f"no image of the class{'es' * (len(empty) > 1)} {quoted(empty, 5)}" if empty else ""
    )
