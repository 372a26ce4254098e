"""The hook that writes a delta beside each checkpoint."""

import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from mmengine.fileio import LocalBackend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner, find_latest_checkpoint
from torch import Tensor

from ..delta import DeltaError, base_digests, extract_delta, extract_delta_from_digests, save_delta
from ..delta.base_file import BASE_FILE, ENVIRONMENT, find_base, load_base, named_as, save_base
from ..internals import load_path, resumes
from ..loading.base_from_config import delta_path
from ..loading.delta_meta import BASE_KEY, chosen_in, extra_of, scores_of
from ..method.wrappers import unwrapped
from ..processes import in_main_process
from ..text import listed
from .trained.trainable_check_hook import is_training


class DeltaHook(Hook):
    """Writes a delta, ``iter_N.delta.safetensors``, beside each ``iter_N.pth``, and the base once, before training.

    A delta holds what trained or moved, which is little, and loads wherever checkpoints do as long as the base file is
    found. Checkpoints stay plain and whole: they alone are resumed, by any OpenMMLab tool. How often they are saved and
    how many are kept is said to the checkpoint hook; deltas come and go with them. Needs AtomicCheckpointHook::

        custom_hooks = [dict(type='APLAHook', r=64), dict(type='DeltaHook')]

    With EMA a delta holds the EMA, as the checkpoint's ``state_dict`` does.

    Args:
        base_dir: Folder of the base file, which runs of the same frozen weights can share; None for the checkpoints'
            own. ``bases`` in that folder's parent is found without being named; any other one must be named to tools
            that run no hooks, by the environment variable ``APLA_MM_BASES``.
    """

    priority = "VERY_HIGH"

    def __init__(self, base_dir: str | None = None) -> None:
        self.base_dir = base_dir
        self.base_file = ""
        self._digests: dict[str, str] = {}
        self._channels: dict[str, Tensor] = {}
        self._resumed_base: Callable[[], Path] | None = None

    def before_run(self, runner: Runner) -> None:
        """Have the runner's checkpoint hook call this one.

        Raises:
            ValueError: It is of another type, or the runner shards.
        """
        if self.base_dir is not None:
            _look_also_in(self.base_dir)
        if not is_training(runner):
            return
        if isinstance(runner, FlexibleRunner):
            raise ValueError(
                "DeltaHook is not for FlexibleRunner, whose strategies write checkpoints themselves; leave it out, "
                "apla-mm extract makes deltas of them"
            )
        hooks = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if not hooks or not all(hasattr(hook, "companion") for hook in hooks):
            raise ValueError(
                "DeltaHook writes and removes deltas together with checkpoints: set "
                "default_hooks.checkpoint.type='AtomicCheckpointHook'"
            )
        for hook in hooks:
            hook.companion = self

    def after_load_checkpoint(self, runner: Runner, checkpoint: Mapping[str, Any]) -> None:
        """Note the base of the run that is resumed.

        Raises:
            ValueError: It has none.
        """
        if not resumes(runner) or not is_training(runner):
            return
        name = (checkpoint.get("meta") or {}).get(BASE_KEY)
        if name is None:
            raise ValueError(
                "DeltaHook: the checkpoint that is resumed names no base file, being of a run without DeltaHook, and "
                "the weights before that run are not known here: resume without it; "
                "apla-mm extract makes deltas of its checkpoints"
            )
        source = Path(load_path(runner) or find_latest_checkpoint(runner.work_dir))
        self._resumed_base = lambda: find_base(name, source)

    def begin(self, runner: Runner, folder: str, backend: Any) -> None:
        """Write the base file, or compare the one of the run that is resumed.

        Args:
            runner: The runner.
            folder: The checkpoints'.
            backend: The folder's file backend.

        Raises:
            ValueError: The folder is not on a local disk; or the base file is not there, or is another one.
            OSError: It could not be written.
            RuntimeError: One of these, in another process.
        """
        if not isinstance(backend, LocalBackend):
            raise ValueError(
                f"DeltaHook writes to local disks alone, and checkpoints go to '{folder}': leave DeltaHook or "
                "default_hooks.checkpoint.out_dir out"
            )
        in_main_process(lambda: self._prepare(runner, Path(self.base_dir or folder).expanduser()))

    def _prepare(self, runner: Runner, folder: Path) -> None:
        model = unwrapped(runner.model)
        begun = extract_delta(model)
        try:
            begun.check()
        except DeltaError as error:
            raise DeltaError(
                f"a delta of this model would be refused: {error}. Register buffers with persistent=False where "
                "they must hold such values, or leave DeltaHook out"
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

    def saving(self, checkpoint: dict[str, Any], path: str | None) -> None:
        """Write the delta, and name the base file in the checkpoint.

        Args:
            checkpoint: What is about to be saved, with the EMA where it will have it.
            path: The file; None if it is not the checkpoint hook that saves, and no delta is written.

        Raises:
            DeltaError: There is NaN or infinity in what trained.
            OSError: The delta cannot be written.
        """
        meta, state = checkpoint["meta"], checkpoint["state_dict"]
        meta[BASE_KEY] = self.base_file
        if path is None:
            return
        delta = extract_delta_from_digests(
            state,
            self._digests,
            self._channels,
            **chosen_in(meta),
            config=meta.get("cfg", ""),
            iteration=meta.get("iter"),
            metrics=scores_of(checkpoint),
            extra={BASE_FILE: self.base_file, **extra_of(meta, state)},
        )
        save_delta(delta, delta_path(path))

    def removed(self, path: str) -> None:
        """Remove the delta of a checkpoint that is outdated."""
        delta_path(path).unlink(missing_ok=True)


def _look_also_in(folder: str | Path) -> None:
    """Have this process and those that it starts look for base files in a folder too."""
    folders = [f for f in os.environ.get(ENVIRONMENT, "").split(os.pathsep) if f]
    path = str(Path(folder).expanduser().absolute())
    if path not in folders:
        os.environ[ENVIRONMENT] = os.pathsep.join([path, *folders])
