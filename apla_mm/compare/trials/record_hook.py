"""The hook that writes down what a trial cost and scored."""

import json
import math
import statistics
import time
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner

from ...delta.atomic_file import write_atomic
from ...measure import peak_bytes
from ...method.wrappers import unwrapped
from ...tuning.trained.trainable import trainable_table
from .run_trial import SCORED, TRAINED


class RecordHook(Hook):
    """Writes ``trained.json`` and ``scored.json`` for :mod:`apla_mm.compare`.

    ``trained.json`` holds ``backbone`` and ``all``, the parameters that train there; ``step``, the median time in
    seconds of a training step with its data, without the first tenth; ``peak``, the most bytes of memory (the device's
    own count on a GPU, else the process's); and ``scores`` of the last validation, null without one. ``scored.json``
    holds a test's.
    A score that is no number, as the IoU of a class without a pixel, is null.

    Args:
        folder: Where to write to.

    Attributes:
        times: Seconds that each training step took.
    """

    priority = "VERY_LOW"

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.times: list[float] = []
        self._since = 0.0
        self._scores: dict[str, float | None] | None = None

    def before_train(self, runner: Runner) -> None:
        """Start the clock."""
        self._since = time.perf_counter()

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: dict[str, Any] | None = None
    ) -> None:
        """Take the time of a step."""
        now = time.perf_counter()
        self.times.append(now - self._since)
        self._since = now

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Keep what a validation gave."""
        self._scores = _numbers(metrics)

    def after_train(self, runner: Runner) -> None:
        """Write down what training was."""
        model = unwrapped(runner.model)
        rows = {name: trainable_table(part)[-1] for name, part in model.named_children() if name == "backbone"}
        self._write(
            TRAINED,
            dict(
                backbone=rows["backbone"].trained if rows else 0,
                all=trainable_table(model)[-1].trained,
                step=self.median_step(),
                peak=peak_bytes(next(model.parameters()).device),
                scores=self._scores,
            ),
        )

    def median_step(self) -> float | None:
        """Of :attr:`times` without the first tenth; None if there was no step."""
        times = self.times[len(self.times) // 10 :]
        return statistics.median(times) if times else None

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write down what a test gave."""
        self._write(SCORED, _numbers(metrics))

    def _write(self, name: str, record: dict[str, Any]) -> None:
        if is_main_process():
            write_atomic((json.dumps(record, indent=1) + "\n").encode(), self.folder / name)


def _numbers(metrics: dict[str, Any] | None) -> dict[str, float | None]:
    numbers = {name: float(value) for name, value in (metrics or {}).items() if not isinstance(value, str)}
    return {name: value if math.isfinite(value) else None for name, value in numbers.items()}
