"""The hook that logs what trains, and proves that nothing else does."""

import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper, OptimWrapperDict
from mmengine.runner import Runner
from torch import nn

from ...method.channels.trained import channels_digest, channels_of
from ...method.wrappers import unwrapped
from ...text import first_few
from ..fsdp import gathered
from .proof import trained_and_frozen_digests
from .trainable import format_trainable, trainable_table


class TrainableCheckHook(Hook):
    """Logs what trains of a model, compares it between processes, and proves on the first step that nothing else moved.

    All processes must train the same channels, which DDP would not notice, since it averages gradients by position. So
    they are compared before training; a difference stops all processes.

    Before training it writes a table (module, trained, total, share). At the first step it compares every tensor
    before and after, bit by bit: a frozen one that moved stops the run. A trained one that has not moved
    ``patience`` iterations later is warned about; right at the first step a warm-up may be too small to show.

    Args:
        depth: How many levels of the model's parts the table has.
        prove: Compare tensors at the first step. It takes about a second for each GB of weights, once.
        patience: Iterations after which everything that trains should have moved.
    """

    priority = "VERY_HIGH"

    def __init__(self, depth: int = 3, prove: bool = True, patience: int = 100) -> None:
        self.depth = depth
        self.prove = prove
        self.patience = patience
        self._frozen: dict[str, str] | None = None
        self._trained: dict[str, str] = {}
        self._check_again_at: int | None = None

    def before_run(self, runner: Runner) -> None:
        """Compare the processes of a runner that is about to train.

        Raises:
            RuntimeError: One of them trains other channels.
        """
        if is_training(runner):
            check_same_channels(unwrapped(runner.model))

    def before_train(self, runner: Runner) -> None:
        """Log the table."""
        with gathered(runner.model):
            rows = trainable_table(unwrapped(runner.model), self.depth)
        if not rows[-1].trained:
            raise RuntimeError("nothing of the model trains: leave a head trainable, or adapt its backbone")
        print_log(f"what trains:\n{format_trainable(rows)}", logger="current")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the tensors before the first step."""
        if self.prove and self._frozen is None:
            self._trained, self._frozen = _digests(runner)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Compare after the first step that the optimizer took, and once more for what had not moved by then.

        Raises:
            RuntimeError: A frozen tensor changed.
        """
        if self.prove:
            self._compare(runner)
        elif runner.iter == self._check_again_at:
            now, _ = _digests(runner)
            still = [name for name, digest in self._trained.items() if now[name] == digest]
            if still:
                print_log(
                    f"{len(still)} tensors that should train have not changed in {self.patience} iterations: "
                    f"{first_few(still, 4)}; they get no gradient, or a learning rate of 0",
                    logger="current",
                    level=logging.WARNING,
                )

    def _compare(self, runner: Runner) -> None:
        assert self._frozen is not None
        trained, frozen = _digests(runner)
        moved = [name for name, digest in frozen.items() if self._frozen[name] != digest]
        if moved:
            raise RuntimeError(f"{len(moved)} frozen tensors changed in training: {first_few(moved, 4)}")
        still = {name: digest for name, digest in trained.items() if self._trained[name] == digest}
        if len(still) == len(trained):
            return  # gradients are still accumulated, or a loss scaler skipped the step
        print_log(
            f"first step: {len(trained) - len(still)} of {len(trained)} trained tensors changed, "
            f"0 of {len(frozen)} frozen ones",
            logger="current",
        )
        self.prove, self._frozen, self._trained = False, {}, still
        self._check_again_at = runner.iter + self.patience if still else None


def is_training(runner: Runner) -> bool:
    """Whether a runner has built an optimizer: in ``before_run`` it is about to train, else to validate or test."""
    return isinstance(runner.optim_wrapper, OptimWrapper | OptimWrapperDict)


def _digests(runner: Runner) -> tuple[dict[str, str], dict[str, str]]:
    with gathered(runner.model):
        return trained_and_frozen_digests(unwrapped(runner.model))


def check_same_channels(model: nn.Module) -> None:
    """Check that all processes train the same channels of a model.

    Raises:
        RuntimeError: They do not; in all processes.
    """
    digests = all_gather_object(channels_digest(model))
    usual, _ = Counter(digests).most_common(1)[0]
    others = [rank for rank, digest in enumerate(digests) if digest != usual]
    if not others:
        return
    every = all_gather_object(channels_of(model))
    pair = digests.index(usual), others[0]
    one, other = (every[rank] for rank in pair)
    name = next(name for name in {**one, **other} if one.get(name) != other.get(name))
    shown = " and ".join(f"{_shown(every[rank].get(name))} on rank {rank}" for rank in pair)
    raise RuntimeError(
        f"{'rank' if len(others) == 1 else 'ranks'} {', '.join(map(str, others))} would train other channels than the "
        f"rest, of '{name}' for one: {shown}; give every rank the same model, r, seed, blocks and channels"
    )


def _shown(channels: Sequence[int] | None) -> str:
    return "none or all" if channels is None else f"{len(channels)} ({first_few(channels)})"
