"""Training that can be cut anywhere and goes on as if it had not been."""

import logging
from typing import Any

from mmengine.dist import all_gather_object, get_rank
from mmengine.logging import print_log
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader

from ..internals import drop_iterator
from .seeding import seed_all, seed_of_rank
from .training_batches import TrainingBatches, batch_sampler_anew, deaths_of_workers_told


class ResumableTrainLoop(IterBasedTrainLoop):
    """mmengine's loop by iterations, of which every iteration follows from the weights, the seed and its number alone.

    A run that is resumed gives the losses and weights, bit by bit on a CPU, of one that was never cut: it reads the
    same images in the same order, augmented and dropped out at random in the same way, and reads none of those
    before again. A validation that was due when the run ended is done first.

    Args:
        runner: The runner.
        dataloader: Config of the training data, or a DataLoader; that one's sampler must be the same in each run.
        max_iters: Iterations to train.
        skip_unreadable: Whether a sample whose image or label map cannot be read is replaced by the next one of the
            data set, with a line in the log, instead of an error.
        **kwargs: Further arguments of mmengine's loop.

    Raises:
        ValueError: The data are not read by batches of indices.
    """

    def __init__(
        self,
        runner: Runner,
        dataloader: DataLoader | dict[str, Any],
        max_iters: int,
        skip_unreadable: bool = False,
        **kwargs: Any,
    ) -> None:
        self._loader_cfg = dataloader if isinstance(dataloader, dict) else None
        self.skip_unreadable = skip_unreadable
        super().__init__(runner, dataloader, max_iters, **kwargs)
        if self.dataloader.batch_sampler is None:
            raise ValueError("ResumableTrainLoop reads data sets by indices, in batches; use IterBasedTrainLoop")
        drop_iterator(self)  # it may have started workers

    def run(self) -> Any:
        """Train, from the iteration that was resumed to the last.

        Returns:
            The model.
        """
        runner = self.runner
        runner.call_hook("before_train")
        runner.call_hook("before_train_epoch")
        seed = seed_of_rank(runner)
        sampler = batch_sampler_anew(self.dataloader, self._loader_cfg, seed) or self.dataloader.batch_sampler
        batches = TrainingBatches(self.dataloader, sampler, seed, self._iter, skip_unreadable=self.skip_unreadable)
        self._decide_current_val_interval()
        with deaths_of_workers_told():
            if self._iter and self._validation_is_due():
                runner.val_loop.run()
            while self._iter < self._max_iters and not self.stop_training:
                runner.model.train()
                batch = next(batches)
                seed_all(seed, 1, self._iter, get_rank())
                self.run_iter(batch)
                self._decide_current_val_interval()
                if self._validation_is_due():
                    runner.val_loop.run()
        if skipped := sum(all_gather_object(batches.skipped)):
            text = f"{skipped} times a sample could not be read and was skipped; the log names each"
            print_log(text, logger="current", level=logging.WARNING)
        runner.call_hook("after_train_epoch")
        runner.call_hook("after_train")
        return runner.model

    def _validation_is_due(self) -> bool:
        last = self._iter == self._max_iters
        due = self._iter >= self.val_begin and (self._iter % self.val_interval == 0 or last)
        return self.runner.val_loop is not None and due
