"""Deltas beside a run's checkpoints, or in their place."""

import logging
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

from ..delta import DeltaError, base_digests, extract_delta, save_delta
from ..delta.base_file import BASE_FILE, ENVIRONMENT, find_base, load_base, named_as, save_base
from ..delta.errors import listed
from ..runs.delta_meta import BASE_KEY, extra_of, scores_of
from ..runs.packed_state import EMA, EMA_OTHERS, EMA_PREFIX, delta_of_state, pack
from ..runs.processes import in_main_process
from .adapt_runner import unwrapped

MODES = ("full", "delta", "both")
SUFFIX = ".delta.safetensors"  #: in place of a checkpoint's


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
        try:
            begun.check()
        except DeltaError as error:
            raise DeltaError(
                f"a delta of this model would be refused: {error}. Register buffers with persistent=False where "
                "they must hold such values, or leave save out"
            ) from error
        self._channels, self._digests = begun.channels, begun.header.base
        if self._resumed_base is None:
            state = model.state_dict()
            path = save_base({name: state[name] for name in self._digests}, folder)
        else:
            path = self._resumed_base()
            base = named_as(load_base(path), self._digests.keys())
            self._take_digests_of(base, path)
            if path.parent.absolute() != folder.absolute():
                path = save_base(base, folder)
        self.base_file = path.name
        print_log(f"deltas are of the base '{path}'", logger="current")

    def _take_digests_of(self, base: Mapping[str, Tensor], path: Path) -> None:
        """What deltas are of stays the base that the resumed run began with, whatever has moved since."""
        if others := base.keys() ^ self._digests.keys():
            raise DeltaError(f"'{path}' is not the base of the run that is resumed: {listed(others)} are in one alone")
        found = base_digests(base, self._channels)
        if moved := [name for name, digest in found.items() if digest != self._digests[name]]:
            if len(moved) == len(found):
                raise DeltaError(f"'{path}' is not the base of the run that is resumed: all of its tensors differ")
            print_log(
                f"{len(moved)} of {len(found)} tensors that do not train are not those of the base '{path}', and are "
                f"saved whole: {listed(moved, 4)}",
                logger="current",
                level=logging.WARNING,
            )
        self._digests = found

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
        state = checkpoint["state_dict"]
        about = {
            **self.about,
            "iteration": meta.get("iter"),
            "metrics": scores_of(checkpoint),
            "extra": {BASE_FILE: self.base_file, **extra_of(meta, state)},
        }
        delta = delta_of_state(state, self._digests, self._channels, config=meta.get("cfg", ""), **about)
        save_delta(delta, delta_path(path))
        if self.mode != "delta":
            return
        checkpoint["state_dict"] = pack(replace(delta, header=replace(delta.header, config="")))
        if EMA in checkpoint:
            mean = checkpoint[EMA]
            own = OrderedDict((n.removeprefix(EMA_PREFIX), t) for n, t in mean.items() if n.startswith(EMA_PREFIX))
            checkpoint[EMA_OTHERS] = {n: t for n, t in mean.items() if not n.startswith(EMA_PREFIX)}
            checkpoint[EMA] = pack(delta_of_state(own, self._digests, self._channels))

    def remove(self, path: str) -> None:
        """Remove the delta of a checkpoint that is outdated."""
        delta_path(path).unlink(missing_ok=True)
