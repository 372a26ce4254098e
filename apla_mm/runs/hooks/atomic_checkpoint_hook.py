"""Checkpoints that are there whenever a process ends."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

from mmengine.dist import is_main_process
from mmengine.fileio import LocalBackend, get_file_backend, join_path, put_text
from mmengine.hooks import CheckpointHook
from mmengine.logging import print_log
from mmengine.runner import Runner, find_latest_checkpoint

from ...delta import DeltaError
from ...delta.atomic_file import SUFFIX
from ...internals import accumulated_iterations
from ..file_backend import ATOMIC


class Companion(Protocol):
    """Writes something beside each checkpoint, and removes it together with the checkpoint."""

    def begin(self, runner: Runner, folder: str, backend: Any) -> None:
        """Training begins, and its checkpoints go to ``folder``, of a file backend."""

    def saving(self, checkpoint: dict[str, Any], path: str | None) -> None:
        """A checkpoint is about to be saved, and its ``meta`` may be added to; None if not by the hook."""

    def removed(self, path: str) -> None:
        """A checkpoint was removed."""


class AtomicCheckpointHook(CheckpointHook):
    """mmengine's CheckpointHook, that removes old checkpoints after the new one is on the disk, not before.

    On a local disk each is written beside its place, flushed and renamed. So there is a whole checkpoint at any moment,
    ``last_checkpoint`` names it, and a disk that is full costs nothing but what came after it. For a moment the disk
    holds one more than ``max_keep_ckpts``, and two best ones. It takes the arguments of mmengine's hook.

    Attributes:
        companion: What writes and removes other files together with checkpoints; set before training.
    """

    file_backend: Any
    backend_args: dict[str, Any] | None
    companion: Companion | None = None
    _path: str | None = None  # of the checkpoint that is being saved

    def before_train(self, runner: Runner) -> None:
        """Remove what a run that was killed has half written, and say where checkpoints would lose gradients."""
        self._write_atomically(runner)
        saved = runner.message_hub.runtime_info.get("keep_ckpt_ids", [])
        outdated = list(saved)[: -self.max_keep_ckpts] if self.max_keep_ckpts > 0 else []  # mmengine removes them
        super().before_train(runner)
        self._stay_here()
        if is_main_process() and Path(self.out_dir).is_dir():
            for name in ("*.pth", "*.safetensors", "last_checkpoint"):
                for path in Path(self.out_dir).glob(f".{name}.*{SUFFIX}"):
                    path.unlink(missing_ok=True)
        if self.companion is not None:
            self.companion.begin(runner, self.out_dir, self.file_backend)
            for step in outdated if is_main_process() else ():
                self.companion.removed(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(step)))
        count = accumulated_iterations(runner)
        if not self.by_epoch and self.interval > 0 and self.interval % count:
            print_log(
                f"a run that is resumed loses gradients: checkpoints every {self.interval} iterations fall between the "
                f"{count} that are accumulated; set default_hooks.checkpoint.interval to a multiple of {count}",
                logger="current",
                level=logging.WARNING,
            )

    def _write_atomically(self, runner: Runner) -> None:
        folder = str(self.out_dir or runner.work_dir)
        chosen = self.file_client_args is not None or (self.backend_args or {}).get("backend")
        if not chosen and type(get_file_backend(folder, backend_args=self.backend_args)) is LocalBackend:
            self.backend_args = {**(self.backend_args or {}), "backend": ATOMIC}

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Call the companion, once the hooks before, such as EMAHook, have changed the checkpoint."""
        if self.companion is not None:
            self.companion.saving(checkpoint, self._path)

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and step not in list(self.keep_ckpt_ids)[-1:]:
            if len(self.keep_ckpt_ids) == self.max_keep_ckpts:
                outdated = self.keep_ckpt_ids.popleft()
            self.keep_ckpt_ids.append(step)
            runner.message_hub.update_info("keep_ckpt_ids", list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info("last_ckpt", self.last_ckpt)
        with _naming_what_is_left(runner):
            _NamesFiles(runner, self).save_checkpoint(
                self.out_dir,
                name,
                self.file_client_args,
                save_optimizer=self.save_optimizer,
                save_param_scheduler=self.save_param_scheduler,
                meta=meta,
                by_epoch=self.by_epoch,
                backend_args=self.backend_args,
                **self.args,
            )
        if is_main_process():
            put_last_checkpoint(runner, self.last_ckpt)
            if outdated is not None:
                self._remove(self.file_backend.join_path(self.out_dir, self.filename_tmpl.format(outdated)))

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        with _naming_what_is_left(runner), self._removing_afterwards():
            super()._save_best_checkpoint(_NamesFiles(runner, self), metrics)

    @contextmanager
    def _removing_afterwards(self) -> Iterator[None]:
        backend = self.file_backend
        self.file_backend = later = _RemovesLater(backend)
        try:
            yield
        finally:
            self.file_backend = backend
        for path in set(later.paths) - set(self._best().values()):
            self._remove(path)

    def _remove(self, path: str) -> None:
        if self.file_backend.isfile(path):
            self.file_backend.remove(path)
        elif self.file_backend.isdir(path):  # DeepSpeed's
            self.file_backend.rmtree(path)
        if self.companion is not None:
            self.companion.removed(path)

    def _best(self) -> dict[str, str]:
        """The best checkpoint for each score."""
        if not self.save_best:
            return {}
        if len(self.key_indicators) == 1:
            return {"": self.best_ckpt_path} if self.best_ckpt_path else {}
        return {key: path for key, path in self.best_ckpt_path_dict.items() if path}

    def _stay_here(self) -> None:
        """Look for the best checkpoint, which will be removed for a better one, in this run's folder alone.

        The one that is resumed may name a file anywhere: of the folder that this one was copied from, say.
        """
        for key, path in self._best().items():
            here = self.file_backend.join_path(self.out_dir, PurePosixPath(path).name)
            if key:
                self.best_ckpt_path_dict[key] = here
            else:
                self.best_ckpt_path = here


class _NamesFiles:
    """A runner that has a hook know which file is being saved."""

    def __init__(self, runner: Any, hook: AtomicCheckpointHook) -> None:
        self._runner, self._hook = runner, hook

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def save_checkpoint(self, out_dir: str, filename: str, *args: Any, **kwargs: Any) -> None:
        self._hook._path = self._hook.file_backend.join_path(out_dir, filename)
        try:
            self._runner.save_checkpoint(out_dir, filename, *args, **kwargs)
        finally:
            self._hook._path = None


class _RemovesLater:
    """A file backend that only notes what is to be removed."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self.paths: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)

    def remove(self, path: str) -> None:
        self.paths.append(path)

    rmtree = remove


@contextmanager
def _naming_what_is_left(runner: Runner) -> Iterator[None]:
    try:
        yield
    except (OSError, DeltaError) as error:
        raise RuntimeError(f"a checkpoint could not be saved: {error}; {last_checkpoint(runner)}") from error


def put_last_checkpoint(runner: Runner, path: str) -> None:
    """Note in the work dir which checkpoint is the latest."""
    file = join_path(runner.work_dir, "last_checkpoint")
    local = type(get_file_backend(file)) is LocalBackend
    put_text(path, file, backend_args={"backend": ATOMIC} if local else None)


def last_checkpoint(runner: Runner) -> str:
    """What an error says of the last checkpoint that is whole."""
    path = find_latest_checkpoint(runner.work_dir)
    return f"the last checkpoint is '{path}', and --resume goes on from it" if path else "there is no checkpoint yet"
