"""The hook that saves before a cluster, or Ctrl-C, ends the training."""

import os
import signal
import threading
from collections.abc import Sequence
from types import FrameType
from typing import Any

import torch
import torch.distributed
from mmengine.device import get_device
from mmengine.dist import barrier, get_world_size, is_main_process
from mmengine.hooks import CheckpointHook, EMAHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from ...internals import accumulated_iterations, save_at, swap_ema
from ..loader_workers import shield_workers
from .atomic_checkpoint_hook import put_last_checkpoint


class StopSignalHook(Hook):
    """Saves a checkpoint when a signal asks training to stop, and leaves.

    After the first of the signals in any process, all of them finish the same iteration (of training, with those whose
    gradients are accumulated, or of the validation in between), save as the config's CheckpointHook does, and leave
    with the exit code 128 + the signal's number: 130 for SIGINT, 138 for SIGUSR1, 143 for SIGTERM.
    ``apla-mm train CONFIG --resume`` goes on from there; a validation that was cut short is then done by
    ResumableTrainLoop and left out by mmengine's loops. A second Ctrl-C ends a process at once, and so does any signal
    before the first iteration.

    Where checkpoints are saved by epochs, the one saved here lies beside them as ``iter_N.pth``, and the epoch that was
    cut short begins again with its weights.

    Args:
        signals: Names of the signals; none switches the hook off.

    Raises:
        ValueError: There is no such signal.
    """

    priority = "LOWEST"  # CheckpointHook comes first: what it has just saved is not saved again

    def __init__(self, signals: Sequence[str] = ("SIGUSR1", "SIGTERM", "SIGINT")) -> None:
        unknown = [name for name in signals if name not in signal.Signals.__members__]
        if unknown:
            raise ValueError(f"StopSignalHook: there is no signal {', '.join(unknown)}; names are such as 'SIGUSR1'")
        self.signals = [signal.Signals[name] for name in signals]
        self._before: dict[signal.Signals, Any] = {}
        self._received = self._leaving = 0
        self._asked: tuple[torch.Tensor, torch.cuda.Event | None] | None = None
        self._val_steps = 0
        # here, since mmengine 0.10.7 starts the workers of its loaders before it calls any hook
        if self.signals:
            shield_workers(True)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Listen, from the first iteration on: before, there is nothing to save."""
        if not self._before and threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in self.signals}

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Leave if a process got a signal.

        Raises:
            SystemExit: One did.
        """
        if not self.signals:
            return
        self._leaving = self._leaving or self._agreed()
        # gradients that are still being accumulated would be lost
        if self._leaving and (runner.iter + 1) % accumulated_iterations(runner) == 0:
            self._leave(runner, self._leaving, runner.iter + 1)

    def before_val_epoch(self, runner: Runner) -> None:
        """Count the iterations that all processes have."""
        if self._before:
            self._val_steps = len(runner.val_dataloader)
            if get_world_size() > 1:
                steps = torch.tensor([self._val_steps], device=get_device())
                torch.distributed.all_reduce(steps, torch.distributed.ReduceOp.MIN)
                self._val_steps = int(steps)

    def after_val_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Sequence[Any] | None = None
    ) -> None:
        """Leave a validation during training if a process got a signal.

        Raises:
            SystemExit: One did.
        """
        if not self._before or batch_idx >= self._val_steps:
            return
        self._leaving = self._leaving or self._agreed()
        if self._leaving and runner.iter % accumulated_iterations(runner) == 0:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):
                    swap_ema(hook)  # a validation sees the EMA
            self._leave(runner, self._leaving, runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Listen no more."""
        self._restore()

    def after_run(self, runner: Runner) -> None:
        """Leave the workers of later loaders alone."""
        shield_workers(False)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self._received = self._received or number
        hint = ""
        if number == signal.SIGINT:
            signal.signal(number, signal.SIG_DFL)  # Python's own KeyboardInterrupt would wait for a stuck collective
            hint = "; once more stops at once"
        # no logging: the signal may have come in the midst of it
        os.write(2, f"{signal.Signals(number).name}: saving after this iteration, then leaving{hint}\n".encode())

    def _agreed(self) -> int:
        """The signal that a process has received, the same in all processes; 0 if none has."""
        if get_world_size() == 1:
            return self._received
        # Asked now, answered in the next iteration: nothing waits for what the GPU has still to do.
        asked, self._asked = self._asked, _ask(self._received)
        if asked is None:
            return 0
        answer, ready = asked
        if ready is not None:
            ready.synchronize()
        return int(answer)

    def _leave(self, runner: Runner, number: int, done: int) -> None:
        path = _save(runner, done)
        code = 128 + number
        what = f"saved {path}; apla-mm train --resume goes on from there" if path else "no CheckpointHook, not saved"
        name = signal.Signals(number).name
        print_log(f"{name}: stopped after iteration {done}: {what}; exit code {code}", logger="current")
        runner.visualizer.close()
        barrier()  # a process that leaves may take the others with it, and one of them is saving
        self._restore()
        raise SystemExit(code)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def _ask(received: int) -> tuple[torch.Tensor, torch.cuda.Event | None]:
    flag = torch.full((1,), received, dtype=torch.int32, device=get_device())
    torch.distributed.all_reduce(flag, torch.distributed.ReduceOp.MAX)
    if not flag.is_cuda:
        return flag, None
    flag = flag.to("cpu", non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return flag, ready


def _save(runner: Runner, done: int) -> str | None:
    """Save after ``done`` iterations, unless that was done; gives the path."""
    hook = next((hook for hook in runner.hooks if isinstance(hook, CheckpointHook)), None)
    if hook is None:
        return None
    if not hook.by_epoch:
        path = hook.file_backend.join_path(hook.out_dir, hook.filename_tmpl.format(done))
        if hook.last_ckpt != path:
            save_at(hook, runner, done, dict(epoch=runner.epoch, iter=done))
        return path
    # mmengine resumes at the start of an epoch
    meta = dict(epoch=runner.epoch, iter=runner.epoch * len(runner.train_dataloader))
    path = hook.file_backend.join_path(hook.out_dir, f"iter_{done}.pth")
    runner.save_checkpoint(
        hook.out_dir,
        f"iter_{done}.pth",
        hook.file_client_args,
        save_optimizer=hook.save_optimizer,
        save_param_scheduler=hook.save_param_scheduler,
        meta=meta,
        backend_args=hook.backend_args,
        **hook.args,
    )
    if is_main_process():
        put_last_checkpoint(runner, path)
    return path
