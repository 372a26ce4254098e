"""The hook that says and proves what trains."""

import logging
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import nn

from ...measure import format_table, trainable_table
from ...measure.fingerprint import trained_and_frozen_digests


class APLAHook(Hook):
    """Logs what trains, and proves on the first optimizer step that nothing else changed.

    Before training it writes a table (module, trained, total, share). At the first step it compares every tensor
    before and after, bit by bit: a frozen one that moved stops the run. A trained one that has not moved
    ``patience`` iterations later is warned about; right at the first step a warm-up may be too small to show.

    Args:
        depth: How far down the table tells parts of the model apart.
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

    def before_train(self, runner: Runner) -> None:
        """Log the table."""
        rows = trainable_table(_unwrapped(runner.model), self.depth)
        if not rows[-1].trained:
            raise RuntimeError("nothing of the model trains: leave a head trainable, or adapt its backbone")
        print_log(f"what trains:\n{format_table(rows)}", logger="current")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Remember the tensors before the first step."""
        if self.prove and self._frozen is None:
            self._trained, self._frozen = trained_and_frozen_digests(_unwrapped(runner.model))

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
            now, _ = trained_and_frozen_digests(_unwrapped(runner.model))
            still = [name for name, digest in self._trained.items() if now[name] == digest]
            if still:
                print_log(
                    f"{len(still)} tensors that should train have not changed in {self.patience} iterations, such as "
                    f"{', '.join(still[:4])}: they get no gradient, or a learning rate of 0",
                    logger="current",
                    level=logging.WARNING,
                )

    def _compare(self, runner: Runner) -> None:
        assert self._frozen is not None
        trained, frozen = trained_and_frozen_digests(_unwrapped(runner.model))
        moved = [name for name, digest in frozen.items() if self._frozen[name] != digest]
        if moved:
            raise RuntimeError(f"{len(moved)} frozen tensors changed in training, such as {', '.join(moved[:4])}")
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


def _unwrapped(model: Any) -> nn.Module:
    return model.module if is_model_wrapper(model) else model
