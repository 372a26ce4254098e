"""Checks of a data set in COCO's format, with errors that name the annotation or image."""

import sys
from collections.abc import Sequence
from os.path import abspath
from pathlib import Path
from typing import Any

import numpy as np

from ...option_values import pasted
from ...text import first_few, quoted
from ..folders import is_local
from ..reading import DataError, check_evenly, read_image
from ..similar_files import hint_at
from .file import CocoFile
from .object_counts import ObjectCounts, taken_images


def is_coco(cls: type | None, plain: bool = False) -> bool:
    """Whether a class of data sets is mmdet's CocoDataset or derived from it.

    Args:
        cls: The class.
        plain: Whether it must also read annotation files as CocoDataset does, unlike those of LVIS and panoptic COCO.
    """
    module = sys.modules.get("mmdet.datasets.coco")  # without mmdet there is no such class
    if module is None or not isinstance(cls, type) or not issubclass(cls, module.CocoDataset):
        return False
    same = ("load_data_list", "parse_data_info")
    return not plain or all(getattr(cls, name) is getattr(module.CocoDataset, name) for name in same)


def check_annotations(
    path: str,
    classes: Sequence[str],
    *,
    masks: bool = False,
    annotated: bool = True,
    truths: Sequence[str] = (),
    min_size: float = 0,
    filter_empty: bool = False,
    box_tolerance: float = 1.0,
    backend_args: Any = None,
    indices: int | Sequence[int] | None = None,
    counts: ObjectCounts | None = None,
) -> str:
    """Check that an annotation file is in order and fits its data set.

    Args:
        path: The annotation file.
        classes: The data set's classes.
        masks: Masks are asked for, not boxes alone.
        annotated: Annotations are asked for, not images alone.
        truths: The annotation files that evaluators compare predictions with.
        min_size: The least side of the images that mmdet keeps.
        filter_empty: Whether mmdet leaves out images without an annotation of the classes.
        box_tolerance: How many pixels a box may reach out of its image.
        backend_args: Where the file is kept, as in mmengine's data sets.
        indices: Which of the images that are kept the data set takes, as in mmengine's data sets.
        counts: Takes how many objects each class has.

    Returns:
        What the log may say of the file: what there is, and what mmdet leaves out of it.

    Raises:
        DataError: Something is wrong.
    """
    file = CocoFile(path, annotated, bool(truths), backend_args)
    _check_classes(file, classes)
    _check_boxes(file, box_tolerance)
    used = _used_annotations(file, classes)
    if masks:
        _check_masks(file, used)
    if annotated:
        crowd = np.array([bool(a.get("iscrowd")) for a in file.annotations], dtype=bool)
        _check_usable(file, classes, used, crowd, min_size)
        if counts is not None:
            empty, small = _images_left_out(file, classes, min_size, filter_empty)
            counts.add(file, used & ~crowd, taken_images(~empty & ~small, indices))
    for truth in truths:
        if abspath(truth) != abspath(path):
            _check_same_images(file, CocoFile(truth, scored=True, backend_args=backend_args))
    return _summary(file, classes, used) + _left_out(file, classes, min_size, filter_empty)


def _check_classes(file: CocoFile, classes: Sequence[str]) -> None:
    """Check that the file has a category for each class, in the classes' order.

    Raises:
        DataError: A class has none, or the order differs: mmdet counts the categories as the file lists them.
    """
    if isinstance(classes, str) or len(set(classes)) != len(classes):
        raise DataError(f"the classes {classes!r} must be names that differ, as in metainfo=dict(classes=('cat',))")
    missing = [name for name in classes if name not in file.names]
    if missing:
        raise DataError(
            f"'{file.path}' has no category for the class{'es' * (len(missing) > 1)} {first_few(missing, 5)}: expected "
            f"one for each; the file's categories are {_option(file.names)}"
        )
    chosen = [name for name in file.names if name in set(classes)]
    if chosen != list(classes):
        first = next(i for i, name in enumerate(classes) if name != chosen[i])
        raise DataError(
            f"'{file.path}' lists the categories in another order than the classes: label {first} would be "
            f"{chosen[first]!r} and be called {classes[first]!r}. Expected the file's order, which has to be one in "
            f"all files: {_option(chosen)}"
        )


def _option(names: Sequence[str]) -> str:
    return pasted({"classes": list(names)})


def _check_boxes(file: CocoFile, tolerance: float) -> None:
    """Check that no box reaches out of its image by more than some pixels.

    Raises:
        DataError: One does.
    """
    size = file.sizes[file.image]
    start, end = file.boxes[:, :2], file.boxes[:, :2] + file.boxes[:, 2:]
    outside = np.maximum(-start, end - size).max(axis=1, initial=0.0)
    wrong = np.flatnonzero(outside > tolerance)
    if len(wrong):
        width, height = size[wrong[0]]
        raise file.error(
            wrong,
            f"has the box {file.boxes[wrong[0]].tolist()}, {outside[wrong[0]]:.1f} pixels outside its image of "
            f"{width:g} x {height:g}",
            "expected [left, top, width, height] in pixels; correct the box or the image's size, or allow it by "
            "DataCheckHook(box_tolerance=...)",
        )


def _check_masks(file: CocoFile, used: np.ndarray) -> None:
    """Check that annotations have a mask, as polygons or run lengths.

    Args:
        file: The annotation file.
        used: Whether each annotation is used.

    Raises:
        DataError: One has none, or one that is neither.
    """
    problems = {i: _mask_problem(file, i) for i in np.flatnonzero(used).tolist()}
    wrong = np.array([i for i, problem in problems.items() if problem])
    if len(wrong):
        same = wrong[[problems[i] == problems[wrong[0]] for i in wrong]]
        raise file.error(
            same,
            problems[same[0]],
            "expected polygons, lists of an even number of at least 6 coordinates, or run lengths, "
            "{'size': [height, width], 'counts': ...}; correct it, or train a model without masks",
        )


def _mask_problem(file: CocoFile, i: int) -> str:
    mask = file.annotations[i].get("segmentation")
    if not mask:
        return "has no segmentation, and the config asks for masks"
    if isinstance(mask, list):
        # mmdet leaves out the polygons that are none, as long as one is left
        fine = any(isinstance(polygon, list) and len(polygon) >= 6 and len(polygon) % 2 == 0 for polygon in mask)
        return "" if fine else "has a segmentation that holds no polygon"
    if not isinstance(mask, dict) or not isinstance(mask.get("counts"), list | str):
        return "has a segmentation that is neither polygons nor run lengths"
    width, height = file.sizes[file.image[i]].tolist()
    if mask.get("size") != [height, width]:
        return f"has a mask of size {mask.get('size')} in an image of [{height:g}, {width:g}]"
    return ""


def _chosen_annotations(file: CocoFile, classes: Sequence[str]) -> np.ndarray:
    """Whether each annotation is of one of the classes."""
    return np.array([name in set(classes) for name in file.names], dtype=bool)[file.category]


def _used_annotations(file: CocoFile, classes: Sequence[str]) -> np.ndarray:
    """Whether mmdet takes each annotation for one of the classes."""
    boxes = file.boxes
    start, end = np.maximum(boxes[:, :2], 0), np.minimum(boxes[:, :2] + boxes[:, 2:], file.sizes[file.image])
    visible = (end > start).all(axis=1) & (boxes[:, 2:] >= 1).all(axis=1)
    kept = np.array([a["area"] > 0 and not a.get("ignore") for a in file.annotations], dtype=bool)
    return _chosen_annotations(file, classes) & visible & kept


def _check_usable(
    file: CocoFile, classes: Sequence[str], used: np.ndarray, crowd: np.ndarray, min_size: float = 0
) -> None:
    """Check that there is something to learn from, or to score.

    Args:
        file: The annotation file.
        classes: The classes.
        used: Whether mmdet takes each annotation for one of the classes.
        crowd: Whether each is of a crowd, which is neither learned nor scored.
        min_size: The least side of an image that mmdet keeps.

    Raises:
        DataError: There is no object of the classes in the images that are kept.
    """
    large = file.sizes.min(axis=1) >= min_size
    if not (used & ~crowd & large[file.image]).any():
        chosen = _chosen_annotations(file, classes)
        raise DataError(
            f"'{file.path}' has no object of the classes {first_few(classes, 5)} that can be used: of {len(used):,} "
            f"annotations, {(~chosen).sum():,} are of other categories, {(chosen & ~used).sum():,} have boxes under a "
            f"pixel, no area, or the mark 'ignore', and {(used & crowd).sum():,} are crowds; of {len(large):,} "
            f"images, {(~large).sum():,} are smaller than filter_cfg.min_size={min_size}. The file's categories are "
            f"{_option(file.names)}"
        )


def _check_same_images(file: CocoFile, truth: CocoFile) -> None:
    """Check that the file which predictions are compared with has the data set's images and categories.

    Raises:
        DataError: It has others.
    """
    cure = "let the evaluator's ann_file be the data set's"
    if {image["id"] for image in file.images} != {image["id"] for image in truth.images}:
        raise DataError(f"the evaluator compares with '{truth.path}', and '{file.path}' has other images: {cure}")
    if file.names != truth.names:
        raise DataError(f"the evaluator compares with '{truth.path}', and '{file.path}' has other categories: {cure}")


def _summary(file: CocoFile, classes: Sequence[str], used: np.ndarray) -> str:
    """What the log says of a file in order: what there is, and what of it mmdet leaves out."""
    text = f"{len(file.images):,} images and {len(used):,} annotations in order"
    left_out = (_chosen_annotations(file, classes) & ~used).sum()
    if left_out:
        text += f"; {left_out:,} are left out, with a box under a pixel, no area, or the mark 'ignore'"
    counts = np.bincount(file.category, minlength=len(file.names)).tolist()
    others = [f"{name} ({n:,})" for name, n in zip(file.names, counts, strict=True) if name not in set(classes)]
    if others:
        text += (
            f"; categories that are no class, and how many annotations are ignored with them: {first_few(others, 10)}"
        )
    if file.scored and any(annotation["id"] == 0 for annotation in file.annotations):
        text += "; pycocotools counts the annotation of id 0 as missed, always: let ids start at 1"
    return text


def _left_out(file: CocoFile, classes: Sequence[str], min_size: float, filter_empty: bool) -> str:
    """What the log says of images that mmdet leaves out."""
    empty, small = _images_left_out(file, classes, min_size, filter_empty)
    text = ""
    for wrong, reason in (
        (empty, "without an annotation of the classes (filter_cfg.filter_empty_gt=True)"),
        (small, f"with a side under filter_cfg.min_size={min_size:g}"),
    ):
        if wrong.any():
            names = quoted((file.images[i]["file_name"] for i in np.flatnonzero(wrong)), 3)
            text += f"; {wrong.sum():,} of {len(wrong):,} images are left out, {reason}: {names}"
    return text


def _images_left_out(
    file: CocoFile, classes: Sequence[str], min_size: float, filter_empty: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Whether mmdet leaves each image out as it has no annotation of the classes, or as it is small."""
    has_some = np.zeros(len(file.images), dtype=bool)
    has_some[file.image[_chosen_annotations(file, classes)]] = True
    empty = ~has_some & filter_empty
    return empty, ~empty & (file.sizes.min(axis=1) < min_size)


def check_images(
    images: Sequence[tuple[str, int, int]],
    time_limit: float | None,
    backend_args: Any = None,
    unreadable: list[str] | None = None,
    **how: str,
) -> int:
    """Check that images can be read and have the sizes that the annotation file gives.

    Files are all looked for first. Then they are read in an order spread evenly over the data set, by threads, until
    the time is over.

    Args:
        images: File, width and height of each.
        time_limit: Seconds, None for all images.
        backend_args: Where they are kept, as in mmengine's data sets.
        unreadable: Takes what is said of files that cannot be read; None raises it.
        how: Arguments of mmcv.imfrombytes.

    Returns:
        How many were read.

    Raises:
        DataError: One is missing, cannot be read, or has another size.
    """
    for path, _, _ in images:
        if is_local(path, backend_args) and not Path(path).is_file():
            raise DataError(
                f"the image '{path}' is missing: expected the file_name of the annotation file below data_prefix.img"
                f"{hint_at(path, 'img', '')}"
            )

    def check(image: tuple[str, int, int]) -> None:
        path, width, height = image
        found = read_image(path, "image", backend_args, **how).shape[1::-1]
        if found == (width, height):
            return
        cure = "correct the annotation file"
        if found == (height, width):
            cure = (
                "its EXIF data may say that it is to be turned; then train with "
                "LoadImageFromFile(color_type='color_ignore_orientation'), or annotate the turned image"
            )
        raise DataError(
            f"the image '{path}' is {found[0]} x {found[1]} and its annotation file says {width} x {height}: "
            f"expected equal sizes; {cure}"
        )

    return check_evenly(images, check, time_limit, unreadable)
