"""The folders and files that a config's data sets name."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from os.path import join
from pathlib import Path
from typing import Any

from mmengine.registry import DATASETS

from .reading import DataError

LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def check_folders(cfg: Mapping[str, Any], loaders: Sequence[str] = LOADERS) -> None:
    """Check that the folders and annotation files that a config names exist and are not empty.

    Args:
        cfg: A whole config.
        loaders: The data loaders whose data sets, and evaluators, are looked at.

    Raises:
        DataError: One does not exist, or a folder of images holds none of the kind that is looked for.
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
                images = key == "data_prefix.img_path" and suffix and not dataset.get("ann_file")
                if images and not any(Path(path).rglob(f"*{suffix}")):
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
    """Which files of its folder a data set takes for images; None if it does not say."""
    if "img_suffix" in dataset:
        return dataset["img_suffix"]
    cls = dataset_class(dataset, scope)
    parameter = None if cls is None else inspect.signature(cls).parameters.get("img_suffix")
    return parameter.default if parameter is not None and isinstance(parameter.default, str) else None
