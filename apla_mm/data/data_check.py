"""Checks of a data set's files, with errors that name the file: folders, pictures, and label maps of segmentation."""

import inspect
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import join
from pathlib import Path
from typing import Any, TypeVar

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.registry import DATASETS

T = TypeVar("T")
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


class DataError(ValueError):
    """The data are not as the config says; the message names the file and what was expected."""


class UnreadableError(DataError):
    """A picture or label map cannot be read."""


def check_folders(cfg: Mapping[str, Any], loaders: Sequence[str] = LOADERS) -> None:
    """Check that the folders and annotation files that a config names exist and are not empty.

    Args:
        cfg: A whole config.
        loaders: The data loaders whose data sets, and evaluators, are looked at.

    Raises:
        DataError: One does not exist, or a folder of pictures holds none of the kind that is looked for.
    """
    cure = "set the data set's place by --cfg-options data_root=FOLDER, or correct data_prefix and ann_file"
    for loader in loaders:
        for dataset in datasets_of(cfg, loader):
            suffix = _suffix(dataset, cfg.get("default_scope"))
            for key, path in _paths(dataset):
                place = f"{loader}.dataset: {key} '{path}'"
                if not is_local(path, dataset.get("backend_args")):
                    continue
                if not Path(path).exists():
                    raise DataError(f"{place} does not exist (looked in {Path.cwd()}); {cure}")
                pictures = key == "data_prefix.img_path" and suffix and not dataset.get("ann_file")
                if pictures and not any(Path(path).rglob(f"*{suffix}")):
                    raise DataError(f"{place} is empty: expected files '*{suffix}'; {cure}")
        for evaluator in evaluators_of(cfg, loader):
            truth = evaluator.get("ann_file")
            if truth and is_local(truth, evaluator.get("backend_args")) and not Path(truth).exists():
                name = loader.replace("dataloader", "evaluator")
                raise DataError(
                    f"{name}: ann_file '{truth}' does not exist (looked in {Path.cwd()}); set {name}.ann_file to the "
                    "annotation file of the data set that is evaluated"
                )


def datasets_of(cfg: Mapping[str, Any], loader: str) -> list[Mapping[str, Any]]:
    """The configs of a data loader's data sets, without their wrappers."""
    return list(_inner((cfg.get(loader) or {}).get("dataset")))


def evaluators_of(cfg: Mapping[str, Any], loader: str) -> list[dict[str, Any]]:
    """The configs of the metrics that score what a data loader gives."""
    evaluators = cfg.get(loader.replace("dataloader", "evaluator")) or []
    evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
    return [evaluator for evaluator in evaluators if isinstance(evaluator, dict)]


def is_local(path: str, backend_args: Any = None) -> bool:
    """Whether a path is one of this machine's file system."""
    return "://" not in path and not backend_args


def dataset_class(dataset: Mapping[str, Any], scope: str | None) -> type | None:
    """The class that a data set's config names; None if it is not registered."""
    name = dataset.get("type")
    return DATASETS.get(f"{scope}.{name}" if scope else name) if isinstance(name, str) else name


def _inner(dataset: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(dataset, Mapping):
        wrapped = [dataset.get("dataset"), *(dataset.get("datasets") or [])]
        if not any(wrapped):
            yield dataset
        for one in wrapped:
            yield from _inner(one)


def _paths(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    root = dataset.get("data_root") or ""
    for key, folder in (dataset.get("data_prefix") or {}).items():
        if folder:
            yield f"data_prefix.{key}", join(root, folder)
    if dataset.get("ann_file"):
        yield "ann_file", join(root, dataset["ann_file"])


def _suffix(dataset: Mapping[str, Any], scope: str | None) -> str | None:
    """Which files of its folder a data set takes for pictures; None if it does not say."""
    if "img_suffix" in dataset:
        return dataset["img_suffix"]
    cls = dataset_class(dataset, scope)
    parameter = None if cls is None else inspect.signature(cls).parameters.get("img_suffix")
    return parameter.default if parameter is not None and isinstance(parameter.default, str) else None


def check_segmentation(
    infos: Sequence[Mapping[str, Any]], num_classes: int, time_limit: float | None, unreadable: list[str] | None = None
) -> int:
    """Check that pictures and label maps can be read, match in size, and hold known classes only.

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
        for what, key in (("picture", "img_path"), ("label map", "seg_map_path")):
            path = info.get(key)
            if path is not None and is_local(path) and not Path(path).is_file():
                raise DataError(f"the {what} '{path}' is missing; '{info['img_path']}' needs it")
    return check_evenly(infos, lambda info: _check_sample(info, num_classes), time_limit, unreadable)


def check_evenly(
    samples: Sequence[T], check: Callable[[T], object], time_limit: float | None, unreadable: list[str] | None = None
) -> int:
    """Check samples in an order spread evenly over all of them, by threads, until the time is over.

    Args:
        samples: What to check.
        check: Raises what is wrong with a sample.
        time_limit: Seconds, None for all samples.
        unreadable: Takes what is said of files that cannot be read; None raises it.

    Returns:
        How many samples were checked.
    """

    def check_one(sample: T) -> None:
        try:
            check(sample)
        except UnreadableError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))

    # the golden ratio's multiples are spread evenly, wherever the time runs out
    order = np.argsort((np.arange(len(samples)) * 0.6180339887498949) % 1.0)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    checked = 0
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(order), 64):
            if deadline is not None and time.monotonic() > deadline:
                break
            chunk = order[start : start + 64]
            list(pool.map(lambda i: check_one(samples[i]), chunk))
            checked += len(chunk)
    return checked


def _check_sample(info: Mapping[str, Any], num_classes: int) -> None:
    picture = read_picture(info["img_path"], "picture", flag="color", backend="cv2")
    if info.get("seg_map_path") is None:
        return
    path = info["seg_map_path"]
    labels = read_picture(path, "label map", flag="unchanged", backend="pillow").squeeze()
    if labels.ndim != 2:
        raise DataError(f"the label map '{path}' has {labels.shape[-1]} channels: expected one, of class indices")
    if labels.shape != picture.shape[:2]:
        raise DataError(
            f"the label map '{path}' is {labels.shape[1]} x {labels.shape[0]} and its picture '{info['img_path']}' "
            f"{picture.shape[1]} x {picture.shape[0]}: expected equal sizes"
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


def read_picture(path: str, what: str, backend_args: Any = None, **how: str) -> np.ndarray:
    """Read a picture.

    Args:
        path: Its file.
        what: What an error calls it.
        backend_args: Where it is kept, as in mmengine's data sets.
        how: Arguments of mmcv.imfrombytes.

    Raises:
        UnreadableError: It cannot be read.
    """
    try:
        array = mmcv.imfrombytes(get(path, backend_args=backend_args), **how)
    except Exception as error:
        raise UnreadableError(f"the {what} '{path}' cannot be read: {error}") from error
    if array is None:
        raise UnreadableError(f"the {what} '{path}' cannot be read: it is no picture, or cut off")
    return array
