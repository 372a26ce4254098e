"""Options that a config states in several places, set in all of them at once."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

from ..data.folders import LOADERS
from ..data.labels.heads import is_in_head, is_other_type
from .image_size import set_classified_size, set_image_size
from .masks import set_masks
from .pipelines import pipelines_by_name, set_pipelines_by_name


def apply_shared_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Carry options given on the command line to every place of a config that depends on them, in place.

    A config's variables are gone once it is read, so ``--cfg-options data_root=...`` by itself would change nothing.
    This covers

    - ``data_root``: every data set;
    - ``classes``: the ``metainfo`` of every data set, and ``num_classes`` of every head;
    - ``thing_classes`` and ``stuff_classes``: the same of panoptic data sets and heads;
    - ``crop_size``, an int or (H, W): images' size in the model and the pipelines, with the resizing before the crop
      and the stride of sliding windows in proportion; where nothing is cropped, the length of images' shorter side;
    - ``max_iters``: the length of training, with the schedule's steps and the intervals of validation, checkpoints and
      logs in proportion;
    - ``with_mask=False``: a detector learns, predicts and is scored by boxes alone.

    Args:
        cfg: The config, as its file says.
        options: The options as given.

    Raises:
        ValueError: An option's value is of the wrong kind.
    """
    followed = pipelines_by_name(cfg)
    if "data_root" in options:
        if not isinstance(options["data_root"], str):
            raise ValueError(f"data_root={options['data_root']!r} must be a folder")
        for dataset in _datasets(cfg):
            dataset["data_root"] = options["data_root"]
    if "classes" in options:
        _set_classes(cfg, options["classes"])
    if {"thing_classes", "stuff_classes"} & options.keys():
        _set_panoptic_classes(cfg, options)
    if "crop_size" in options:
        _set_crop_size(cfg, options["crop_size"])
    if "max_iters" in options:
        _set_max_iters(cfg, options["max_iters"])
    if "with_mask" in options:
        set_masks(cfg, options["with_mask"])
    set_pipelines_by_name(cfg, followed)


def drop_settings_of_workers(cfg: Config, options: Mapping[str, Any]) -> None:
    """Where options leave a data loader without workers, leave out the config's settings of workers, in place.

    Args:
        cfg: The config, with the options in it.
        options: The options as given; what they set themselves stays.
    """
    for loader in filter(cfg.get, LOADERS):
        if options.get(f"{loader}.num_workers", 1) == 0:
            for key in ("persistent_workers", "prefetch_factor", "multiprocessing_context", "timeout"):
                if f"{loader}.{key}" not in options:
                    cfg[loader].pop(key, None)


def _set_classes(cfg: Config, given: Any) -> None:
    classes = _names("classes", given, "background,cat,dog")
    if any(_is_panoptic(head) for head in _dicts(cfg.model)):
        raise ValueError(
            "classes=... does not say which are things and which are stuff, and the config is panoptic: give both, as "
            "in --cfg-options thing_classes=cat,dog stuff_classes=grass,sky"
        )
    for dataset in _datasets(cfg):
        dataset["metainfo"] = dict(classes=classes)
    for head in counting_heads(cfg.model):
        _set_num_classes(head, len(classes))


def _set_panoptic_classes(cfg: Config, options: Mapping[str, Any]) -> None:
    keys = ("thing_classes", "stuff_classes")
    heads = [part for part in _dicts(cfg.model) if _is_panoptic(part)]
    if not all(key in options for key in keys) or not heads:
        why = "they go together" if heads else "the config is not panoptic; give classes=..."
        raise ValueError(f"thing_classes and stuff_classes: {why}")
    things, stuff = (_names(key, options[key], "cat,dog") for key in keys)
    if both := set(things) & set(stuff):
        raise ValueError(f"{min(both)!r} is in thing_classes and in stuff_classes")
    for dataset in _datasets(cfg):
        dataset["metainfo"] = dict(classes=(*things, *stuff), thing_classes=things, stuff_classes=stuff)
    for head in heads:
        before = head["num_things_classes"] + head["num_stuff_classes"]
        head.update(num_things_classes=len(things), num_stuff_classes=len(stuff))
        _repeat_weight(head, before, len(things) + len(stuff))


def _is_panoptic(part: Mapping[str, Any]) -> bool:
    return bool(part.get("num_things_classes") and part.get("num_stuff_classes"))


def _names(key: str, given: Any, example: str) -> tuple[str, ...]:
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(one, str) and one for one in names):
        raise ValueError(f"{key}={given!r} must be names, as in --cfg-options {key}={example}")
    if len(set(names)) != len(names):
        raise ValueError(f"{key}={names} holds a name twice")
    return tuple(names)


def _set_num_classes(head: dict[str, Any], count: int) -> None:
    key = "num_classes" if "num_classes" in head else "num_things_classes"
    before, head[key] = head[key], count
    if isinstance(before, int):
        _repeat_weight(head, before, count)


def _repeat_weight(head: dict[str, Any], before: int, count: int) -> None:
    for part in _dicts(head):
        weights = part.get("class_weight")
        # one weight for all classes, and perhaps another for the background
        if isinstance(weights, list) and len(set(weights[:before])) == 1 and len(weights) in (before, before + 1):
            part["class_weight"] = weights[:1] * count + weights[before:]


def counting_heads(node: Any, path: str = "model") -> Iterator[dict[str, Any]]:
    """The parts of heads that state a number of classes; None is one that is still to be counted."""
    if isinstance(node, dict):
        instances = "num_things_classes" in node and not node.get("num_stuff_classes")
        if ("num_classes" in node or instances) and is_in_head(path) and not is_other_type(str(node.get("type"))):
            yield node
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list | tuple) else ()
    for key, child in list(children):
        yield from counting_heads(child, f"{path}.{key}")


def _set_crop_size(cfg: Config, crop_size: Any) -> None:
    size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    pair = isinstance(size, list | tuple) and len(size) == 2
    if not pair or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"crop_size={crop_size!r} must be an int or (height, width) in pixels")
    pipelines = [(cfg.get(loader) or {}).get("dataset") for loader in LOADERS]
    if cfg.get("default_scope") == "mmpretrain":
        set_classified_size(list(_dicts(cfg.model)), list(_dicts(pipelines)), (size[0], size[1]))
        return
    set_image_size(
        list(_dicts(cfg.model)),
        list(_dicts(pipelines)),
        list(_dicts(cfg.get("tta_pipeline"))),
        (size[0], size[1]),
        width_first=cfg.get("default_scope") == "mmdet",
    )


def _set_max_iters(cfg: Config, max_iters: Any) -> None:
    if not isinstance(max_iters, int) or max_iters < 1 or "max_iters" not in cfg.train_cfg:
        raise ValueError(
            f"max_iters={max_iters!r} must be an int of at least 1, for a config that trains by iterations"
        )
    before = cfg.train_cfg.max_iters

    def scale(part: dict[str, Any], key: str, least: int) -> None:
        part[key] = max(least, -(-part[key] * max_iters // before))

    cfg.train_cfg.max_iters = max_iters
    for scheduler in cfg.param_scheduler:
        # a warm-up of one step would never reach its end, so each part has at least two
        if scheduler.get("begin"):
            scale(scheduler, "begin", 2)
        if "end" in scheduler:
            scale(scheduler, "end", scheduler.get("begin", 0) + 2)
        if "T_max" in scheduler:
            scale(scheduler, "T_max", 1)
        if "milestones" in scheduler:
            scheduler["milestones"] = [max(1, -(-step * max_iters // before)) for step in scheduler["milestones"]]
    for part, key in (
        (cfg.train_cfg, "val_interval"),
        (cfg.default_hooks.checkpoint, "interval"),
        (cfg.default_hooks.logger, "interval"),
    ):
        if key in part:
            scale(part, key, 1)


def _datasets(cfg: Config) -> Iterator[dict[str, Any]]:
    """The innermost data sets of all loaders."""
    for loader in LOADERS:
        for part in _dicts((cfg.get(loader) or {}).get("dataset")):
            if "pipeline" in part and "dataset" not in part:
                yield part


def _dicts(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list | tuple):
        for child in node:
            yield from _dicts(child)
