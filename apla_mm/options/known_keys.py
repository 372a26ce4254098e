"""Options that would change nothing, or that a config has no place for."""

import inspect
from collections.abc import Iterable, Mapping
from copy import deepcopy
from difflib import get_close_matches
from typing import Any

from mmengine.config import Config
from mmengine.runner import FlexibleRunner, Runner

#: what ``apply_shared_options`` and ``take_method`` carry out
SHARED = (
    "data_root",
    "classes",
    "thing_classes",
    "stuff_classes",
    "crop_size",
    "max_iters",
    "with_mask",
    "method",
)
#: what runners, registries and inference read of a config beside a runner's own arguments
_FURTHER = (
    "custom_imports",
    "runner_type",
    "find_unused_parameters",
    "model_wrapper_cfg",
    "activation_checkpointing",
    "sync_bn",
    "efficient_conv_bn_eval",
    "train_pipeline",
    "test_pipeline",
    "vis_backends",
    "tta_model",
    "tta_pipeline",
)


def check_keys(cfg: Config, options: Iterable[str], shared: Iterable[str] = SHARED) -> None:
    """Refuse options that nothing reads: a run would go on without them, and nobody would be told.

    Args:
        cfg: The config, as its file says.
        options: Dotted keys.
        shared: Keys that are carried to the places of a config which depend on them.

    Raises:
        ValueError: The first step of a key is no setting of the config's or of a runner's.
    """
    arguments = {name for cls in (Runner, FlexibleRunner) for name in inspect.signature(cls.__init__).parameters}
    known = sorted({*cfg, *shared, *_FURTHER, *arguments} - {"self", "cfg"})
    for key in options:
        first = key.partition(".")[0]
        if first not in known:
            near = get_close_matches(first, known, n=2, cutoff=0.6)
            meant = f"did you mean {' or '.join(near)}?" if near else "the config has no such setting."
            raise ValueError(
                f"option '{key}': nothing reads '{first}', and it would change nothing; {meant} What code of your own "
                "reads has to be in the config file"
            )


def merge_options(cfg: Config, options: Mapping[str, Any]) -> None:
    """Set settings of a config by their dotted keys, in place.

    Args:
        cfg: The config.
        options: Values by key.

    Raises:
        ValueError: There is no place for one: an item that a list has not, or a setting within a number.
    """
    try:
        cfg.merge_from_dict(dict(options))
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(_unfit(cfg, options) or f"options do not fit the config: {error}") from error


def _unfit(cfg: Config, options: Mapping[str, Any]) -> str:
    """Which of several options has no place, and why; empty if each has one by itself."""
    for key, value in options.items():
        try:
            deepcopy(cfg).merge_from_dict({key: value})
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            return f"option '{key}' has no place in the config: {_last_place(cfg, key)}"
    return ""


def _last_place(node: Any, key: str) -> str:
    """The last step of a key that a config has, and what is there."""
    passed: list[str] = []
    for step in key.split("."):
        if isinstance(node, Mapping | Config) and step in node:
            node = node[step]
        elif isinstance(node, list | tuple) and step.isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            break
        passed.append(step)
    where = f"'{'.'.join(passed)}'"
    if isinstance(node, list):
        return f"{where} is a list of {len(node)}, whose items are called by numbers from 0"
    return f"{where} is {node!r}, which holds no settings"
