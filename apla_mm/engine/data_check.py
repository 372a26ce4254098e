"""Checks of a segmentation data set's files, with errors that name the file."""

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from os.path import join
from pathlib import Path
from typing import Any

import mmcv
import numpy as np
from mmengine.fileio import get
from mmengine.registry import DATASETS


class DataError(ValueError):
    """The data are not as the config says; the message names the file and what was expected."""


def check_folders(cfg: Mapping[str, Any]) -> None:
    """Check that the folders and annotation files that a config's data loaders name exist and are not empty.

    Args:
        cfg: A whole config.

    Raises:
        DataError: One does not exist, or a folder of pictures holds none of the kind that is looked for.
    """
    cure = "set the data set's place by --cfg-options data_root=FOLDER, or correct data_prefix and ann_file"
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        for dataset in _datasets((cfg.get(loader) or {}).get("dataset")):
            suffix = _suffix(dataset, cfg.get("default_scope"))
            for key, path in _paths(dataset):
                place = f"{loader}.dataset: {key} '{path}'"
                if "://" in path:
                    continue
                if not Path(path).exists():
                    raise DataError(f"{place} does not exist (looked in {Path.cwd()}); {cure}")
                pictures = key == "data_prefix.img_path" and suffix and not dataset.get("ann_file")
                if pictures and not any(Path(path).rglob(f"*{suffix}")):
                    raise DataError(f"{place} is empty: expected files '*{suffix}'; {cure}")


def _datasets(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """The data sets inside wrappers."""
    if isinstance(dataset, Mapping):
        inner = [dataset.get("dataset"), *(dataset.get("datasets") or [])]
        if not any(inner):
            yield dataset
        for one in inner:
            yield from _datasets(one)


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
    name = dataset.get("type")
    cls = DATASETS.get(f"{scope}.{name}" if scope else name) if isinstance(name, str) else name
    parameter = None if cls is None else inspect.signature(cls).parameters.get("img_suffix")
    return parameter.default if parameter is not None and isinstance(parameter.default, str) else None


def check_segmentation(infos: Sequence[Mapping[str, Any]], num_classes: int, time_limit: float | None) -> int:
    """Check that pictures and label maps can be read, match in size, and hold known classes only.

    Files are all looked for first. Then they are read in an order spread evenly over the data set, by threads, until
    the time is over.

    Args:
        infos: What mmseg's data sets say of each sample (``img_path``, ``seg_map_path``, ``reduce_zero_label``,
            ``label_map``).
        num_classes: Number of classes.
        time_limit: Seconds, None for all samples.

    Returns:
        How many samples were read.

    Raises:
        DataError: Something is wrong with a sample.
    """
    for info in infos:
        for what, key in (("picture", "img_path"), ("label map", "seg_map_path")):
            path = info.get(key)
            if path is not None and "://" not in path and not Path(path).is_file():
                raise DataError(f"the {what} '{path}' is missing; '{info['img_path']}' needs it")
    # the golden ratio's multiples are spread evenly, wherever the time runs out
    order = np.argsort((np.arange(len(infos)) * 0.6180339887498949) % 1.0)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    read = 0
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(order), 64):
            if deadline is not None and time.monotonic() > deadline:
                break
            chunk = order[start : start + 64]
            list(pool.map(lambda i: _check_sample(infos[i], num_classes), chunk))
            read += len(chunk)
    return read


def _check_sample(info: Mapping[str, Any], num_classes: int) -> None:
    picture = _read(info["img_path"], "picture", flag="color", backend="cv2")
    if info.get("seg_map_path") is None:
        return
    path = info["seg_map_path"]
    labels = _read(path, "label map", flag="unchanged", backend="pillow").squeeze()
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


def _read(path: str, what: str, **how: str) -> np.ndarray:
    try:
        array = mmcv.imfrombytes(get(path), **how)
    except Exception as error:
        raise DataError(f"the {what} '{path}' cannot be read: {error}") from error
    if array is None:
        raise DataError(f"the {what} '{path}' cannot be read: it is no picture, or cut off")
    return array
