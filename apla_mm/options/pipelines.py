"""Pipelines that a config holds twice: by a name of their own, and in a data loader.

mmseg's and mmdet's inference read ``cfg.test_pipeline``, training and testing what is in the loaders.
"""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ..data.folders import LOADERS


def pipelines_by_name(cfg: Config) -> dict[str, list[str]]:
    """Top-level pipelines, such as ``test_pipeline``, each with the data loaders that use the same one."""
    found = {}
    for name in [key for key in cfg if key.endswith("_pipeline") and isinstance(cfg[key], list)]:
        loaders = [loader for loader in LOADERS if _of_loader(cfg, loader) == cfg[name]]
        # of validation and test, which may be set apart by options, the test is what inference takes after
        loaders.sort(key=lambda loader: (loader.split("_")[0] != name.split("_")[0], loader != "test_dataloader"))
        if loaders:
            found[name] = loaders
    return found


def set_pipelines_by_name(cfg: Config, followed: Mapping[str, list[str]]) -> None:
    """Let top-level pipelines be what their data loaders' have become, in place.

    Args:
        cfg: The config.
        followed: What :func:`pipelines_by_name` gave before.
    """
    for name, loaders in followed.items():
        pipeline = _of_loader(cfg, loaders[0])
        if pipeline is not None and cfg.get(name) is not pipeline:
            cfg[name] = copy.deepcopy(pipeline)


def in_loaders(options: Mapping[str, Any], followed: Mapping[str, list[str]]) -> dict[str, Any]:
    """Options for a top-level pipeline, as options for the data loaders that use it; others as they are."""
    found: dict[str, Any] = {}
    for key, value in options.items():
        name, _, rest = key.partition(".")
        for loader in followed.get(name, ()):
            found[".".join(filter(None, (f"{loader}.dataset.pipeline", rest)))] = value
    # what is set for a loader by its own name has the last word
    return {**found, **options}


def _of_loader(cfg: Config, loader: str) -> Any:
    dataset = (cfg.get(loader) or {}).get("dataset")
    return dataset.get("pipeline") if isinstance(dataset, Mapping) else None
