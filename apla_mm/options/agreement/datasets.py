"""Data sets: what those of training, validation and test have in common."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from mmengine.config import Config

from ...data.folders import LOADERS, dataset_class
from .problems import Problem, find, kind, pair, parts


def datasets(cfg: Config, loader: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The data sets of a loader, without their wrappers, each with its dotted key."""
    for key, part in parts(find(cfg, f"{loader}.dataset", {}), f"{loader}.dataset"):
        if "pipeline" in part and not {"dataset", "datasets"} & set(part) and ".pipeline" not in key:
            yield key, part


def classes_of(cfg: Config, loader: str) -> Iterator[tuple[str, list[Any]]]:
    """The classes of a loader's data sets, each with the data set's dotted key; those of their type by default.

    Classes that are given to the model as text may be others in each data set: they are left out.
    """
    for key, dataset in datasets(cfg, loader):
        if dataset.get("return_classes"):
            continue
        names = find(dataset, "metainfo.classes")
        if names is None and not dataset.get("metainfo"):
            names = _own_classes(_class(cfg, dataset))
        if isinstance(names, list | tuple):
            yield key, list(names)


def _own_classes(cls: Any) -> Any:
    """The classes of a type of data set; None of those whose heads count others: panoptic ones, and videos."""
    own = getattr(cls, "METAINFO", {})
    video = any(base.__name__ == "BaseVideoDataset" for base in getattr(cls, "__mro__", ()))
    return None if video or "thing_classes" in own else own.get("classes")


def _class(cfg: Config, dataset: Mapping[str, Any]) -> Any:
    return dataset_class(dataset, None if "." in str(dataset.get("type")) else cfg.get("default_scope"))


def labels_begin_alike(cfg: Config) -> Iterator[Problem]:
    """What training learns as the first class is what evaluation scores as such."""
    if cfg.get("default_scope") == "mmdet":
        return
    first: tuple[str, bool] | None = None
    for loader in LOADERS:
        for where, dataset in datasets(cfg, loader):
            key, value = f"{where}.reduce_zero_label", dataset.get("reduce_zero_label")
            if value is None:
                cls = _class(cfg, dataset)
                parameter = inspect.signature(cls).parameters.get("reduce_zero_label") if cls else None
                value = parameter is not None and parameter.default is True
            if first is None:
                first = key, bool(value)
            elif bool(value) != first[1]:
                what = f"{bool(value)}, and {first[0]} is {first[1]}: the labels would differ by one"
                yield Problem(key, what, {key: first[1]}, error=False)


def sizes_of_evaluation(cfg: Config) -> Iterator[Problem]:
    """Validation, which chooses the best checkpoint, the test and mmseg's inference see images of the same size."""
    known = [(key, [*_scales(one, key)]) for loader in LOADERS[1:] for key, one in datasets(cfg, loader)]
    if cfg.get("default_scope") != "mmdet":  # mmdet's inference reads the loader's
        known += [("", [*_scales({"pipeline": cfg.get("test_pipeline") or []}, "")])]
    known = [one for one in known if len(one[1]) == 1]
    if len(known) < 2:
        return
    right, size = next((one for one in known if one[0].startswith("test_dataloader")), known[0])[1][0]
    for _, ((key, other),) in known:
        key = key.replace(".pipeline", "test_pipeline", 1) if key.startswith(".") else key
        if other != size:
            what = f"{other}, and {right} is {size}: images would be seen at another size"
            yield Problem(key, what, {key: size}, error=False)


def _scales(dataset: Mapping[str, Any], where: str) -> Iterator[tuple[str, tuple[int, int]]]:
    for key, step in parts(dataset.get("pipeline"), f"{where}.pipeline"):
        size = pair(step.get("scale")) if kind(step) == "Resize" else None
        if size is not None:
            yield f"{key}.scale", size


def batches_of_one_size(loader: str, cfg: Config) -> Iterator[Problem]:
    """In evaluation mmseg makes a batch only of images of one size."""
    size = find(cfg, f"{loader}.batch_size", 1)
    if loader == "train_dataloader" or cfg.get("default_scope") != "mmseg" or not isinstance(size, int) or size < 2:
        return
    for key, dataset in datasets(cfg, loader):
        steps = [step for _, step in parts(dataset.get("pipeline"), "")]
        keeps = any(kind(step) == "Resize" and step.get("keep_ratio") for step in steps)
        if keeps and not any(kind(step) in ("Pad", "ResizeToMultiple") for step in steps):
            what = f"{size}, and {key}.pipeline keeps the proportions of images: mmseg refuses a batch of two sizes"
            cure = {f"{loader}.batch_size": 1}
            yield Problem(f"{loader}.batch_size", what, cure, "unless all images have one size", error=False)
            return


def rules_of(used: Sequence[str]) -> list[Callable[[Config], Iterator[Problem]]]:
    """The rules for these data loaders."""
    several = [labels_begin_alike, sizes_of_evaluation] if "train_dataloader" in used else []
    return [*(partial(batches_of_one_size, loader) for loader in used), *several]
