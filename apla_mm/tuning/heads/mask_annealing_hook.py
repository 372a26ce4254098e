"""Takes EoMT's attention masks off while a model trains."""

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner


class MaskAnnealingHook(Hook):
    """Takes the attention masks of an EoMT head off, one block after another (arXiv 2503.19108, section 3.3).

    A block's masks are on for all queries until its start, then for a share that falls to nothing at its end. That
    depends on the iteration alone, so that a resumed run goes on as it would have.

    Args:
        starts: Where it begins, for each of the head's blocks, as a share of training; None for sixths of it as in the
            recipe of COCO: the first of four blocks from 1/6 on, the last from 4/6 on.
        ends: Where it ends; None for one such part later.
        power: Of the share of queries, (1 - progress) ** power.
    """

    priority = "LOW"

    def __init__(
        self, starts: Sequence[float] | None = None, ends: Sequence[float] | None = None, power: float = 0.9
    ) -> None:
        if (starts is None) != (ends is None):
            raise ValueError("starts and ends are given together, or neither")
        pairs = list(zip(starts or (), ends or (), strict=False))
        if len(starts or ()) != len(ends or ()) or not all(0 <= start < end <= 1 for start, end in pairs):
            raise ValueError(f"starts={starts}, ends={ends} must be shares of training, each start before its end")
        self.starts, self.ends, self.power = starts, ends, power

    def before_train(self, runner: Runner) -> None:
        """Find the head.

        Raises:
            ValueError: There is none, or it has another number of blocks.
        """
        model: Any = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._heads = [m for m in model.modules() if isinstance(getattr(m, "mask_probability", None), torch.Tensor)]
        if not self._heads:
            raise ValueError("MaskAnnealingHook is for a model with an EoMTHead, and there is none: leave it out")
        counts = {len(head.mask_probability) for head in self._heads}
        if self.starts is not None and counts != {len(self.starts)}:
            raise ValueError(f"the head has {counts.pop()} blocks, and starts are {len(self.starts)}")

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Set what holds in this iteration."""
        progress = runner.iter / runner.max_iters
        for head in self._heads:
            head.mask_probability.copy_(torch.tensor(self.probabilities(len(head.mask_probability), progress)))

    def probabilities(self, count: int, progress: float) -> list[float]:
        """For which share of the queries each block's masks are on.

        Args:
            count: Of the blocks.
            progress: The share of training that is done.
        """
        part = 1 / (count + 2)
        starts = self.starts or [part * (i + 1) for i in range(count)]
        ends = self.ends or [start + part for start in starts]
        done = ((progress - start) / (end - start) for start, end in zip(starts, ends, strict=True))
        return [(1 - min(1.0, max(0.0, share))) ** self.power for share in done]
