"""One training run of a comparison, and its config."""

import copy
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import join
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from ...data.folders import datasets_of, evaluators_of
from ...data.text_files import decoded_json
from ...delta.atomic_file import write_atomic
from .splits import Split

CONSTRUCTOR = "TrainableOptimWrapperConstructor"
#: what a test writes of each image into a final trial's folder
AREAS, HITS, PREDICTIONS = "areas.npz", "hits.npz", "predictions"
#: constructors whose rules ours keeps
_ALIKE = (None, "DefaultOptimWrapperConstructor", CONSTRUCTOR)


@dataclass(frozen=True)
class Item:
    """Of a data set.

    Attributes:
        name: The image's path.
        position: In the data set without the ``indices`` of its config.
        id: In a COCO file.
    """

    name: str
    position: int
    id: Any = None


@dataclass(frozen=True)
class Trial:
    """What one run trains.

    Attributes:
        kind: ``'search'``, scored on what is held out of the training set, or ``'final'``, on the test set.
        method: As on the command line, such as ``'apla:r=64'``.
        fraction: Of the training set.
        seed: Of the run: order of the data, augmentation, new weights and the drawn channels; of a final run the
            fraction too.
        lr: Of the backbone; None for ``head``, whose backbone does not train.
        head_lr: Of all else.
    """

    kind: str
    method: str
    fraction: float
    seed: int
    lr: float | None
    head_lr: float

    @property
    def folder(self) -> Path:
        """Where it lies in a study's folder."""
        rates = f"head{self.head_lr:g}" if self.lr is None else f"lr{self.lr:g}_head{self.head_lr:g}"
        return Path(self.kind, slug(self.method), f"fraction{self.fraction:g}", f"{rates}_seed{self.seed}")


def slug(method: str) -> str:
    """A method's name as that of a folder."""
    return re.sub(r"[^\w.=,-]", "_", method)


def set_rates(cfg: Config, lr: float | None, head_lr: float) -> None:
    """Give the backbone one learning rate and all else another, in place; decay and schedules stay.

    Multipliers of learning rates in the config are for the backbone alone then: of what is not in it they are left out,
    so that heads learn alike whatever the backbone's rate.

    Raises:
        ValueError: The optimizer is made by a constructor that cannot do so.
    """
    wrapper = cfg.optim_wrapper
    if wrapper.get("constructor") not in _ALIKE or "optimizer" not in wrapper:
        raise ValueError(
            f"optim_wrapper.constructor={wrapper.get('constructor')!r} sets learning rates by rules of its own, and a "
            f"comparison has to set them: use '{CONSTRUCTOR}'"
        )
    wrapper.constructor, wrapper.optimizer.lr = CONSTRUCTOR, head_lr
    rules = wrapper.setdefault("paramwise_cfg", {})
    for key, rule in (rules.get("custom_keys") or {}).items():
        if not key.startswith("backbone"):
            rule.pop("lr_mult", None)
    rules.part_lr = {} if lr is None else dict(backbone=lr)


def items_of(cfg: Config, loader: str) -> list[Item]:
    """The items of a loader's data set, in its order.

    Raises:
        ValueError: It is not one plain data set.
    """
    settings = _one(datasets_of(cfg, loader), loader)
    whole = _built(cfg, {**settings, "indices": None, "lazy_init": False})
    positions, indices = range(len(whole)), settings.get("indices")
    if isinstance(indices, int):  # as mmengine reads it: the first ones, or the last
        positions = positions[:indices] if indices >= 0 else positions[indices:]
    chosen = positions if indices is None or isinstance(indices, int) else [positions[i] for i in indices]
    infos = ((i, whole.get_data_info(i)) for i in chosen)
    return [Item(str(info["img_path"]), position, info.get("img_id")) for position, info in infos]


def classes_of(cfg: Config, loader: str) -> tuple[str, ...]:
    """The classes of a loader's data set.

    Raises:
        ValueError: It is not one plain data set.
    """
    dataset = _built(cfg, {**_one(datasets_of(cfg, loader), loader), "lazy_init": True})
    return tuple(dataset.metainfo.get("classes") or ())


def _built(cfg: Config, settings: Any) -> Any:
    if cfg.get("default_scope"):
        init_default_scope(cfg.default_scope)
    return DATASETS.build({**settings, "pipeline": []})


def for_search(cfg: Config, items: Sequence[Item], split: Split, folder: Path) -> None:
    """Train on one part of the training set and validate once, at the end, on the other; in place.

    Args:
        cfg: The trial's config.
        items: Of the training set.
        split: Which to train on, and which are held out.
        folder: Where an annotation file of COCO's format may be written to.
    """
    training = _training_set(cfg)
    validation = _one(datasets_of(cfg, "val_dataloader"), "val_dataloader")
    held_out = copy.deepcopy(training)
    held_out.pipeline = validation.pipeline
    if files := [e for e in evaluators_of(cfg, "val_dataloader") if e.get("ann_file")]:
        file = folder / "held_out.json"
        _write_annotations(training, {items[i].id for i in split.held_out}, file)
        held_out.update(ann_file=str(file.absolute()), test_mode=True)
        held_out.pop("filter_cfg", None)
        held_out.pop("indices", None)
        for evaluator in files:
            evaluator["ann_file"] = str(file.absolute())
    else:
        held_out.indices = [items[i].position for i in split.held_out]
    training.indices = [items[i].position for i in split.train]
    _allow_missing_classes(cfg)
    cfg.val_dataloader.dataset = held_out
    cfg.train_cfg.val_interval = cfg.train_cfg.max_iters
    _keep_last_checkpoint(cfg)


def for_final(cfg: Config, items: Sequence[Item], chosen: Sequence[int], folder: Path) -> None:
    """Train on what was drawn of the training set, without validation, and keep what each test image adds; in place.

    Args:
        cfg: The trial's config.
        items: Of the training set.
        chosen: Which of them were drawn.
        folder: Where the test writes to.
    """
    _training_set(cfg).indices = [items[i].position for i in chosen]
    if len(chosen) < len(items):
        _allow_missing_classes(cfg)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.train_cfg.pop("val_interval", None)
    _keep_last_checkpoint(cfg)
    evaluators = evaluators_of(cfg, "test_dataloader")
    for evaluator in evaluators:
        if evaluator["type"] == "IoUMetric":
            areas = dict(type="ImageAreas", file=str((folder / AREAS).absolute()))
            cfg.test_evaluator = [*evaluators, {**areas, "ignore_index": evaluator.get("ignore_index", 255)}]
        if evaluator["type"] == "Accuracy":
            cfg.test_evaluator = [*evaluators, dict(type="ImageHits", file=str((folder / HITS).absolute()))]
        if evaluator["type"] == "CocoMetric":
            evaluator["outfile_prefix"] = str((folder / PREDICTIONS).absolute())


def annotations_of_test(cfg: Config) -> Path | None:
    """The annotation file that a test compares with; None if there is none."""
    files = [evaluator["ann_file"] for evaluator in evaluators_of(cfg, "test_dataloader") if evaluator.get("ann_file")]
    return Path(files[0]) if files else None


def _allow_missing_classes(cfg: Config) -> None:
    """A part of the data may lack a class that all of it has."""
    for hook in [*(cfg.get("custom_hooks") or []), *(cfg.get("default_hooks") or {}).values()]:
        if hook and hook.get("type") == "DataCheckHook":
            hook["missing_classes"] = True


def _keep_last_checkpoint(cfg: Config) -> None:
    """Of the best one a validation would have to be looked at while training goes on."""
    hooks = cfg.setdefault("default_hooks", {})
    hook = hooks.get("checkpoint") or dict(
        type="AtomicCheckpointHook", by_epoch=False, interval=cfg.train_cfg.max_iters
    )
    hook.pop("save_best", None)
    hooks["checkpoint"] = {**hook, "max_keep_ckpts": 1, "save_last": True}


def _write_annotations(dataset: Any, ids: set[Any], file: Path) -> None:
    """Write the part of a COCO file that is of some images."""
    annotations = decoded_json(join(dataset.get("data_root") or "", dataset.ann_file), dataset.get("backend_args"))
    for key, id_key in (("images", "id"), ("annotations", "image_id")):
        annotations[key] = [one for one in annotations[key] if one[id_key] in ids]
    write_atomic(json.dumps(annotations).encode(), file)


def _training_set(cfg: Config) -> Any:
    return _one(datasets_of(cfg, "train_dataloader"), "train_dataloader")


def _one(datasets: Sequence[Any], loader: str) -> Any:
    if len(datasets) != 1:
        raise ValueError(f"{loader} has {len(datasets)} data sets: a comparison draws parts of one")
    return datasets[0]
