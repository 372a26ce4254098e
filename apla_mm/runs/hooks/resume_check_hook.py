"""The hook that lets a run go on only from a checkpoint of its own kind."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...internals import resumes
from ...method.channels.trained import channels_of
from ...method.wrappers import unwrapped
from ...processes import in_every_process
from ...text import first_few

#: what decides about the weights that training gives ...
_COMPARED = (
    "model",
    "train_dataloader",
    "train_cfg",
    "optim_wrapper",
    "param_scheduler",
    "custom_hooks",
    "auto_scale_lr",
    "randomness",
)
#: ... but for where files lie, how they are read, when is validated, and where training ends
_LEFT_OUT = (
    "*.data_root",
    "*.backend_args*",
    "*.file_client_args*",
    "*.init_cfg*",
    "*.pretrained*",
    "*.recompute",
    "*.frozen_dtype",
    "custom_hooks.APLAHook.prove",
    "custom_hooks.APLAHook.depth",
    "custom_hooks.APLAHook.patience",
    "custom_hooks.TuningHook.prove",
    "custom_hooks.TuningHook.depth",
    "custom_hooks.TuningHook.patience",
    "custom_hooks.DeltaHook*",
    "custom_hooks.DataCheckHook*",
    "train_dataloader.num_workers",
    "train_dataloader.persistent_workers",
    "train_dataloader.prefetch_factor",
    "train_dataloader.pin_memory",
    "train_dataloader.timeout",
    "train_cfg.max_*",
    "train_cfg.val_*",
    "train_cfg.skip_unreadable",
    "train_cfg.dynamic_intervals*",
)
#: what is restored over the config
_RESTORED = ("optim_wrapper.optimizer", "param_scheduler", "randomness.seed")
_KEY = "apla_mm"


class ResumeCheckHook(Hook):
    """Compares the run that is resumed with the one that saved the checkpoint.

    Checkpoints get a record of the config's parts that decide about each iteration, of the number of processes, and of
    what trains, channels included. A checkpoint whose record differs is not resumed, and nothing of it is loaded. One
    without a record, of another tool, is resumed, and the log says that it was not compared.

    Weights alone are loaded by ``load_from`` without ``resume``, from any checkpoint.

    Args:
        allow: Keys of the config, or patterns or beginnings of them such as ``'train_cfg'``, that may differ; also
            ``'processes'``. The optimizer's settings, the schedules and the seed then go on as they were saved,
            whatever the config says. What trains can never differ: the optimizer's state belongs to it.
    """

    priority = 20  # right after APLAHook, which takes recorded channels from the checkpoint

    def __init__(self, allow: str | Sequence[str] = ()) -> None:
        self.allow = [allow] if isinstance(allow, str) else list(allow)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Add the record."""
        # as text: readers of checkpoints allow plain values
        checkpoint["meta"][_KEY] = json.dumps(dict(config=_settings(runner.cfg), trains=_trains(runner.model)))

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare, if the run is resumed.

        Raises:
            ValueError: The checkpoint is of another run.
        """
        # a text that mmengine would run as Python
        (checkpoint.get("meta") or {}).pop("config", None)
        if resumes(runner):
            in_every_process(lambda: self._check(runner, checkpoint))

    def _check(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        meta = checkpoint.get("meta") or {}
        if "iter" not in meta or "optimizer" not in checkpoint:
            raise ValueError(
                "the checkpoint holds no optimizer or iteration, and a run cannot go on from it; to start anew from "
                "its weights leave out --resume and set load_from"
            )
        if _KEY not in meta:
            print_log("resuming: the checkpoint has no record of its run, which is not compared", logger="current")
            return
        config, trains = _read(meta[_KEY])
        self._compare(config, _settings(runner.cfg))
        _compare_trained(trains, _trains(runner.model))

    def _compare(self, then: Mapping[str, str], now: Mapping[str, str]) -> None:
        keys = [*then, *(key for key in now if key not in then)]
        changed = [key for key in keys if then.get(key) != now.get(key)]
        told = [
            f"{key}: {then.get(key, 'not set')} then, {now.get(key, 'not set')} now"
            f"{', and stays as it was saved' if key.startswith(_RESTORED) else ''}"
            for key in changed
        ]
        allowed = [any(fnmatchcase(key, p) or key.startswith(f"{p}.") for p in self.allow) for key in changed]
        refused = [line for line, fine in zip(told, allowed, strict=True) if not fine]
        if refused:
            first = next(key for key, fine in zip(changed, allowed, strict=True) if not fine).split(".")[0]
            first = first if first in _COMPARED else "processes"
            raise ValueError(
                f"the checkpoint is of a run with other settings:\n  {_lines(refused)}\nResume with those of then, or "
                f"name what may differ, as in --cfg-options default_hooks.resume_check.allow={first}; the optimizer's "
                "settings, the schedules and the seed then stay as they were saved. To start anew from its weights "
                "leave out --resume and set load_from"
            )
        if told:
            print_log(f"resuming with other settings, as allowed:\n  {_lines(told)}", logger="current")


def _read(record: Any) -> tuple[dict[str, str], dict[str, str]]:
    try:
        parts = json.loads(record)
        config, trains = parts["config"], parts["trains"]
        if all(isinstance(text, str) for part in (config, trains) for text in part.values()):
            return config, trains
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError(f"the checkpoint's record of its run, meta['{_KEY}'], is damaged; set load_from, without --resume")


def _trains(model: Any) -> dict[str, str]:
    """What trains, in the optimizer's order: shapes by name, channels of projections as a digest."""
    model = unwrapped(model)
    channels = {_plain(name): chosen for name, chosen in channels_of(model).items()}
    found = {}
    for name, parameter in model.named_parameters():
        name = _plain(name)
        projection = name.rpartition(".trained.")[0]
        if projection in channels:
            digest = hashlib.sha256(json.dumps(channels[projection]).encode()).hexdigest()[:16]
            found[f"channels of {projection}"] = f"{len(channels[projection])} ({digest})"
        elif parameter.requires_grad:
            found[name] = str(tuple(parameter.shape))
    return found


def _plain(name: str) -> str:
    return name.replace("_fsdp_wrapped_module.", "")


def _compare_trained(then: Mapping[str, str], now: Mapping[str, str]) -> None:
    names = [*then, *(name for name in now if name not in then)]
    changed = [name for name in names if then.get(name) != now.get(name)]
    if changed:
        told = [f"{name}: {then.get(name, 'did not train')} then, {now.get(name, 'frozen')} now" for name in changed]
        raise ValueError(
            f"the checkpoint is of a run in which other parameters trained:\n  {_lines(told)}\nSet r, seed and "
            "channels as then; to start anew from its weights leave out --resume and set load_from"
        )


def _lines(lines: Sequence[str]) -> str:
    return first_few(lines, separator="\n  ")


def _settings(cfg: Mapping[str, Any]) -> dict[str, str]:
    """Keys and values, as text, of the config's compared parts."""
    parts = {part: cfg.get(part) for part in _COMPARED}
    # by name: one that is added changes nothing of the others
    parts["custom_hooks"] = {_name(hook.get("type")): hook for hook in parts["custom_hooks"] or []}
    leaves = (leaf for part, node in parts.items() for leaf in _leaves(node, part))
    settings = {key: value for key, value in leaves if not any(fnmatchcase(key, out) for out in _LEFT_OUT)}
    return {**settings, "processes": str(get_world_size())}


def _leaves(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, Mapping):
        for key, child in node.items():
            yield from _leaves(child, f"{path}.{key}")
    elif isinstance(node, list | tuple) and any(isinstance(child, Mapping) for child in node):
        for i, child in enumerate(node):
            yield from _leaves(child, f"{path}.{i}")
    elif node is not None:
        # as JSON, since tuples become lists on the way through config files
        yield path, json.dumps(node, default=_name)


def _name(value: Any) -> str:
    if isinstance(value, str):
        return value
    return f"{value.__module__}.{value.__qualname__}" if hasattr(value, "__qualname__") else repr(value)
