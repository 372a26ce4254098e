"""A run that ends after a few steps, to see what it will cost."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.device import get_device
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import EpochBasedTrainLoop, Runner

from ...method.wrappers import unwrapped


class RehearsedError(Exception):
    """The rehearsal is over; not an error of the run."""


@dataclass
class Costs:
    """What was measured.

    Attributes:
        trains: How many values train.
        values: How many there are.
        step: Seconds of a training step, loading of its images included.
        steps: Of the whole training.
        image: Seconds of an image in validation; None if nothing is validated.
        images: Of a validation.
        validations: Of the whole training.
        checkpoint: Bytes of a checkpoint, with the optimizer.
        checkpoints: How many are kept at the end.
    """

    trains: int = 0
    values: int = 0
    step: float = 0.0
    steps: int = 0
    image: float | None = None
    images: int = 0
    validations: int = 0
    checkpoint: int = 0
    checkpoints: int = 0

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        return self.step * self.steps + (self.image or 0.0) * self.images * self.validations


class RehearsalHook(Hook):
    """Ends a training after a few steps and a batch of validation, and keeps what they cost.

    All that a run does before its first step is done: data are looked at, weights loaded, the model adapted.

    Args:
        costs: Is filled.
        steps: How many are measured, after one that is not.
    """

    priority = "VERY_LOW"

    def __init__(self, costs: Costs, steps: int = 2) -> None:
        self.costs, self.steps = costs, steps
        self._times: list[float] = []

    def before_train(self, runner: Runner) -> None:
        """Count."""
        parameters = list(runner.model.parameters())
        self.costs.trains = sum(p.numel() for p in parameters if p.requires_grad)
        self.costs.values = sum(p.numel() for p in parameters)
        self.costs.steps = runner.max_iters
        self.costs.checkpoints = sum(_kept(hook, runner) for hook in runner.hooks if isinstance(hook, CheckpointHook))

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Note the time; at the end, look at a batch of validation.

        Raises:
            RehearsedError: It is the last step.
        """
        _wait()
        self._times.append(time.perf_counter())
        if len(self._times) <= min(self.steps, runner.max_iters - 1):
            return
        steps = len(self._times) - 1
        self.costs.step = (self._times[-1] - self._times[0]) / steps if steps else float("nan")
        state = [*unwrapped(runner.model).state_dict().values(), *_tensors(runner.optim_wrapper.state_dict())]
        self.costs.checkpoint = sum(tensor.nbytes for tensor in state if isinstance(tensor, torch.Tensor))
        if runner.val_loop is not None:
            self._validate(runner)
        raise RehearsedError

    def _validate(self, runner: Runner) -> None:
        loader = runner.val_loop.dataloader
        batch = next(iter(loader))
        runner.model.eval()
        _wait()
        start = time.perf_counter()
        with torch.no_grad():
            found: Sequence[Any] = runner.model.val_step(batch)
        _wait()
        self.costs.image = (time.perf_counter() - start) / max(1, len(found))
        self.costs.images = len(loader.dataset)
        loop = runner.train_loop
        rounds = loop.max_epochs if isinstance(loop, EpochBasedTrainLoop) else loop.max_iters
        interval = getattr(loop, "val_interval", 0)
        self.costs.validations = rounds // interval if interval else 1


def _kept(hook: CheckpointHook, runner: Runner) -> int:
    """How many checkpoints a hook leaves."""
    rounds = runner.max_epochs if hook.by_epoch else runner.max_iters
    saved, rest = divmod(rounds, hook.interval) if hook.interval > 0 else (0, rounds)
    saved += bool(rest and hook.save_last)
    kept = min(saved, hook.max_keep_ckpts) if hook.max_keep_ckpts > 0 else saved
    return kept + len(getattr(hook, "key_indicators", None) or ())


def _wait() -> None:
    if get_device() == "cuda":
        torch.cuda.synchronize()


def _tensors(node: Any) -> list[torch.Tensor]:
    if isinstance(node, torch.Tensor):
        return [node]
    children = node.values() if isinstance(node, dict) else node if isinstance(node, list | tuple) else ()
    return [tensor for child in children for tensor in _tensors(child)]
