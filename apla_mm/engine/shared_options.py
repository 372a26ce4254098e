"""Options that a config states in several places, set in all of them at once."""

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.config import Config

_LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


def apply_shared_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Carry options given on the command line to every place of a config that depends on them, in place.

    A config's variables are gone once it is read, so ``--cfg-options data_root=...`` by itself would change nothing.
    This covers

    - ``data_root``: every data set;
    - ``classes``: the ``metainfo`` of every data set, and ``num_classes`` of every head;
    - ``crop_size``, an int or (H, W): pictures' size in the model and the pipelines, with the resizing before the crop
      and the stride of sliding windows in proportion;
    - ``max_iters``: the length of training, with the schedule's steps and the intervals of validation, checkpoints and
      logs in proportion.

    Args:
        cfg: The config, as its file says.
        options: The options as given.

    Raises:
        ValueError: An option's value is of the wrong kind.
    """
    if "data_root" in options:
        if not isinstance(options["data_root"], str):
            raise ValueError(f"data_root={options['data_root']!r} must be a folder")
        for dataset in _datasets(cfg):
            dataset["data_root"] = options["data_root"]
    if "classes" in options:
        _set_classes(cfg, options["classes"])
    if "crop_size" in options:
        _set_crop_size(cfg, options["crop_size"])
    if "max_iters" in options:
        _set_max_iters(cfg, options["max_iters"])


def _set_classes(cfg: Config, classes: Any) -> None:
    classes = [classes] if isinstance(classes, str) else classes
    names = isinstance(classes, list | tuple) and all(isinstance(name, str) and name for name in classes)
    if not names or not classes:
        raise ValueError(f"classes={classes!r} must be names, as in --cfg-options classes=background,cat,dog")
    if len(set(classes)) != len(classes):
        raise ValueError(f"classes={classes} holds a name twice")
    for dataset in _datasets(cfg):
        dataset["metainfo"] = dict(classes=tuple(classes))
    for part in _dicts(cfg.model):
        if "num_classes" in part:
            part["num_classes"] = len(classes)


def _set_crop_size(cfg: Config, crop_size: Any) -> None:
    size = (crop_size, crop_size) if isinstance(crop_size, int) else crop_size
    pair = isinstance(size, list | tuple) and len(size) == 2
    if not pair or not all(type(side) is int and side > 0 for side in size):
        raise ValueError(f"crop_size={crop_size!r} must be an int or (height, width) in pixels")
    size = tuple(size)
    for part in _dicts(cfg.model):
        if part.get("type") == "SegDataPreProcessor":
            part["size"] = size
        if part.get("mode") == "slide":
            part["crop_size"], part["stride"] = size, tuple(side * 2 // 3 for side in size)
        if "img_size" in part:
            part["img_size"] = size
    for dataset in _datasets(cfg):
        for transform in _dicts(dataset.get("pipeline")):
            if "crop_size" in transform:
                transform["crop_size"] = size
            if transform.get("type") in ("RandomResize", "Resize") and "scale" in transform:
                transform["scale"] = (4 * size[0], size[0]) if transform.get("keep_ratio") else size[::-1]


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
    for part, key in (
        (cfg.train_cfg, "val_interval"),
        (cfg.default_hooks.checkpoint, "interval"),
        (cfg.default_hooks.logger, "interval"),
    ):
        if key in part:
            scale(part, key, 1)


def _datasets(cfg: Config) -> Iterator[dict[str, Any]]:
    """The innermost data sets of all loaders."""
    for loader in _LOADERS:
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
