"""The folders and files that a config's data sets name."""

import inspect
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from os.path import join, splitext
from pathlib import Path
from typing import Any

from mmengine.fileio import list_dir_or_file
from mmengine.registry import DATASETS

from .reading import DataError
from .text_files import check_list

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check_folders(cfg: Mapping[str, Any], loaders: Sequence[str] = LOADERS) -> None:
    """Check that the folders and annotation files that a config names exist and are not empty.

    Args:
        cfg: A whole config.
        loaders: The data loaders whose data sets, and evaluators, are looked at.

    Raises:
        DataError: One does not exist, or a folder of images holds none of the kind that is looked for.
    """
    for loader in loaders:
        for dataset in datasets_of(cfg, loader):
            _check_dataset(f"{loader}.dataset: ", dataset, cfg.get("default_scope"))
        for evaluator in evaluators_of(cfg, loader):
            truth = evaluator.get("ann_file")
            if truth and is_local(truth, evaluator.get("backend_args")) and not Path(truth).exists():
                name = loader.replace("dataloader", "evaluator")
                raise DataError(
                    f"{name}: ann_file '{truth}' does not exist (looked in {Path.cwd()}); set {name}.ann_file to the "
                    "annotation file of the data set that is evaluated"
                )


def _check_dataset(where: str, dataset: Mapping[str, Any], scope: str | None) -> None:
    cure = "set the data set's place by --cfg-options data_root=FOLDER, or correct data_prefix and ann_file"
    suffix = _suffix(dataset, scope)
    for key, path in _paths(dataset):
        if not is_local(path, dataset.get("backend_args")):
            continue
        if not Path(path).exists():
            home = "; write the path out, ~ is not read as a home" if "~" in path else ""
            raise DataError(f"{where}{key} '{path}' does not exist (looked in {Path.cwd()}){home}; {cure}")
        by_list = (
            dataset.get("ann_file") and not Path(join(dataset.get("data_root") or "", dataset["ann_file"])).is_dir()
        )
        if key == "data_prefix.img_path" and suffix and not Path(path).is_dir():
            raise DataError(f"{where}{key} '{path}' is no folder: expected one of images '*{suffix}'; {cure}")
        if key == "data_prefix.img_path" and suffix and not by_list and not _has_files(path, suffix):
            others = Counter(splitext(name)[1] for name in _files(path, ""))
            kinds = ", ".join(f"{count:,} '*{other}'" for other, count in others.most_common(4))
            found = f"is empty: expected files '*{suffix}'"
            if kinds:
                found = f"holds no files '*{suffix}' but {kinds}: set img_suffix, or rename"
            raise DataError(f"{where}{key} '{path}' {found}; {cure}")
        if key == "ann_file" and Path(path).is_file() and suffix and is_plain_seg(dataset_class(dataset, scope)):
            check_list(path, suffix)


def datasets_of(cfg: Mapping[str, Any], loader: str) -> list[MutableMapping[str, Any]]:
    """The configs of a data loader's data sets, without their wrappers."""
    return list(_inner((cfg.get(loader) or {}).get("dataset")))


def evaluators_of(cfg: Mapping[str, Any], loader: str) -> list[dict[str, Any]]:
    """The configs of the metrics that score what a data loader gives."""
    evaluators = cfg.get(loader.replace("dataloader", "evaluator")) or []
    evaluators = [evaluators] if isinstance(evaluators, dict) else evaluators
    return [evaluator for evaluator in evaluators if isinstance(evaluator, dict)]


def is_plain_seg(cls: type | None) -> bool:
    """Whether a class of data sets finds its files as mmseg's BaseSegDataset does."""
    module = sys.modules.get("mmseg.datasets.basesegdataset")  # without mmseg there is no such class
    if module is None or not isinstance(cls, type):
        return False
    return getattr(cls, "load_data_list", None) is module.BaseSegDataset.load_data_list


def is_local(path: str, backend_args: Any = None) -> bool:
    """Whether a path is one of this machine's file system."""
    return "://" not in path and not backend_args


def dataset_class(dataset: Mapping[str, Any], scope: str | None) -> type | None:
    """The class that a data set's config names; None if it is not registered."""
    name = dataset.get("type")
    return DATASETS.get(f"{scope}.{name}" if scope else name) if isinstance(name, str) else name


def _files(folder: str, suffix: str) -> Iterator[str]:
    """The files that mmengine finds below a folder."""
    return list_dir_or_file(folder, list_dir=False, suffix=suffix or None, recursive=True)


def _has_files(folder: str, suffix: str) -> bool:
    return any(True for _ in _files(folder, suffix))


def _inner(dataset: Any) -> Iterator[MutableMapping[str, Any]]:
    if isinstance(dataset, MutableMapping):
        wrapped = [dataset.get("dataset"), *(dataset.get("datasets") or [])]
        if not any(wrapped):
            yield dataset
        for one in wrapped:
            yield from _inner(one)


def _paths(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    root = dataset.get("data_root") or ""
    prefix = dataset.get("data_prefix") or {}
    for key, folder in (dict(img_path=prefix) if isinstance(prefix, str) else prefix).items():  # mmpretrain takes both
        if folder or (root and key == "img_path"):
            yield f"data_prefix.{key}", join(root, folder)
    if dataset.get("ann_file"):
        yield "ann_file", join(root, dataset["ann_file"])


def _suffix(dataset: Mapping[str, Any], scope: str | None) -> str | None:
    """Which files of its folder a data set takes for images; None if it does not say."""
    if "img_suffix" in dataset:
        return dataset["img_suffix"]
    cls = dataset_class(dataset, scope)
    parameter = None if cls is None else inspect.signature(cls).parameters.get("img_suffix")
    return parameter.default if parameter is not None and isinstance(parameter.default, str) else None
