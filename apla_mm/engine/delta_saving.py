"""Deltas beside a run's checkpoints, or in their place."""

import json
import os
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner, find_latest_checkpoint
from torch import Tensor

from ..checkpoint import DeltaError, base_digests, check_base, extract_delta, save_delta
from ..checkpoint.base_file import BASE_FILE, ENVIRONMENT, find_base, load_base, save_base
from .adapt_runner import unwrapped
from .main_process import in_main_process
from .packed_state import BASE_KEY, EMA, EMA_OTHERS, EMA_PREFIX, META, delta_of, pack

MODES = ("full", "delta", "both")
SUFFIX = ".delta.safetensors"  #: in place of a checkpoint's
_NOT_IN_DELTA = ("cfg", "config", "time", "apla_mm")  # the header's own; of the moment; of resuming


def delta_path(checkpoint: str | Path) -> Path:
    """The delta beside a checkpoint."""
    path = Path(checkpoint)
    return path.with_name(path.stem + SUFFIX)


def look_also_in(folder: str | Path) -> None:
    """Have this process and those that it starts look for base files in a folder too."""
    folders = [f for f in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if f]
    path = str(Path(folder).expanduser().absolute())
    if path not in folders:
        os.environ[ENVIRONMENT] = os.pathsep.join([path, *folders])


def refuse_to_resume_delta(runner: Runner) -> None:
    """Say why a run cannot go on from a delta.

    Raises:
        ValueError: The run shall be resumed from one.
    """
    path = getattr(runner, "_load_from", None)
    if not getattr(runner, "_resume", False) or not str(path).endswith(".safetensors"):
        return
    beside = Path(str(path).removesuffix(SUFFIX) + ".pth")
    cure = f"resume from '{beside}', beside it" if beside.is_file() else "resume from a .pth of the run"
    raise ValueError(
        f"'{path}' holds weights alone, no optimizer and no schedules, and a run cannot go on from it: {cure}; to "
        "start anew from its weights leave out --resume and set load_from"
    )


class DeltaSaver:
    """Writes a delta for each checkpoint that AtomicCheckpointHook saves, and one base file for all of them.

    Args:
        mode: ``'delta'``: checkpoints keep only what trained or moved, and all that resuming needs; ``'both'``: they
            are whole.
        base_dir: Folder of the base file; None for the checkpoints' own.
        about: Fields of the deltas' headers that stay the same: r, seed, selection.
    """

    def __init__(self, mode: str, base_dir: str | None, about: Mapping[str, Any]) -> None:
        self.mode, self.base_dir, self.about = mode, base_dir, about
        self.base_file = ""
        self._digests: dict[str, str] = {}
        self._channels: dict[str, Tensor] = {}
        self._resumed_base: Callable[[], Path] | None = None

    def attach(self, runner: Runner) -> None:
        """Have the runner's checkpoint hook call this.

        Raises:
            ValueError: It is of another type, or the runner shards.
        """
        if isinstance(runner, FlexibleRunner):
            raise ValueError(
                f"APLAHook(save='{self.mode}') is not for FlexibleRunner, whose strategies write checkpoints "
                "themselves; leave save out"
            )
        hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if not hooks or not all(hasattr(hook, "companion") for hook in hooks):
            raise ValueError(
                f"APLAHook(save='{self.mode}') writes and removes deltas together with checkpoints: set "
                "default_hooks.checkpoint.type='AtomicCheckpointHook'"
            )
        for hook in hooks:
            hook.companion = self

    def after_load_checkpoint(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Note the base of the run that is resumed.

        Raises:
            ValueError: It has none.
        """
        if not runner._resume:
            return
        name = (checkpoint.get("meta") or {}).get(BASE_KEY)
        if name is None:
            raise ValueError(
                f"APLAHook(save='{self.mode}'): the checkpoint that is resumed names no base file, being of a run with "
                "save='full', and the weights before that run are not known here: resume with save='full'; "
                "tools/model_converters/extract_delta.py makes deltas of its checkpoints"
            )
        source = Path(runner._load_from or find_latest_checkpoint(runner.work_dir))
        self._resumed_base = lambda: find_base(name, source)

    def before_train(self, runner: Runner, folder: str, backend: Any) -> None:
        """Write the base file, or compare the one of the run that is resumed.

        Args:
            runner: The runner.
            folder: The checkpoints'.
            backend: The folder's file backend.

        Raises:
            ValueError: The folder is not on a local disk.
            RuntimeError: It could not be written, is not there, or is another one; in all processes.
        """
        if not isinstance(backend, LocalBackend):
            raise ValueError(
                f"APLAHook(save='{self.mode}') writes to local disks alone, and checkpoints go to '{folder}': leave "
                "save or default_hooks.checkpoint.out_dir out"
            )
        in_main_process(
            lambda: self._prepare(runner, Path(self.base_dir or folder).expanduser()), f"APLAHook(save='{self.mode}')"
        )

    def _prepare(self, runner: Runner, folder: Path) -> None:
        model = unwrapped(runner.model)
        begun = extract_delta(model)
        self._channels, self._digests = begun.channels, begun.header.base
        if self._resumed_base is None:
            state = model.state_dict()
            path = save_base({name: state[name] for name in self._digests}, folder)
        else:
            path = self._resumed_base()
            base = load_base(path)
            try:
                check_base(self._digests, base_digests({n: base[n] for n in base}, self._channels))
            except DeltaError as error:
                raise DeltaError(f"'{path}' is not the base of the run that is resumed: {error}") from error
            if path.parent.absolute() != folder.absolute():
                path = save_base(base, folder)
        self.base_file = path.name
        print_log(f"deltas are of the base '{path}'", logger="current")

    def before_save_checkpoint(self, checkpoint: dict[str, Any], path: str | None) -> None:
        """Write the delta, and leave out of the checkpoint what is in the base.

        Args:
            checkpoint: What is about to be saved, with the means of weights where it will have them.
            path: The file; None if it is not the hook that saves, and nothing but the base's name is added.

        Raises:
            DeltaError: There is NaN or infinity in what trained.
            OSError: The delta cannot be written.
        """
        meta = checkpoint["meta"]
        meta[BASE_KEY] = self.base_file
        if path is None:
            return
        extra = {
            BASE_FILE: self.base_file,
            META: plain({key: value for key, value in meta.items() if key not in _NOT_IN_DELTA}),
        }
        about = {**self.about, "iteration": meta.get("iter"), "metrics": _metrics(checkpoint), "extra": extra}
        state = checkpoint["state_dict"]
        delta = delta_of(state, self._digests, self._channels, config=meta.get("cfg", ""), **about)
        save_delta(delta, delta_path(path))
        if self.mode != "delta":
            return
        checkpoint["state_dict"] = pack(replace(delta, header=replace(delta.header, config="")))
        if EMA in checkpoint:
            mean = checkpoint[EMA]
            own = OrderedDict((n.removeprefix(EMA_PREFIX), t) for n, t in mean.items() if n.startswith(EMA_PREFIX))
            checkpoint[EMA_OTHERS] = {n: t for n, t in mean.items() if not n.startswith(EMA_PREFIX)}
            checkpoint[EMA] = pack(delta_of(own, self._digests, self._channels))

    def remove(self, path: str) -> None:
        """Remove the delta of a checkpoint that is outdated."""
        delta_path(path).unlink(missing_ok=True)


def _metrics(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """The validation's scores, if they are of these weights; what the training loop saves has an earlier one's."""
    hub = checkpoint.get("message_hub") or {}
    if hub.get("runtime_info", {}).get("loop_stage") != "val":
        return {}
    scalars = {key: buffer for key, buffer in hub.get("log_scalars", {}).items() if key.startswith("val/")}
    found: dict[str, Any] = plain({key.removeprefix("val/"): buffer.current() for key, buffer in scalars.items()})
    return {key: value for key, value in found.items() if key not in ("time", "data_time")}


def plain(values: Any) -> Any:
    """Values as JSON has them."""
    return json.loads(
        json.dumps(values, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value))
    )
