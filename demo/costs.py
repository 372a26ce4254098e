"""What a training step costs."""

import statistics
import time
from collections.abc import Callable
from typing import Any

from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner

from apla_mm.measure.saved_tensors import SavedTensors
from apla_mm.tuning.trained.trainable import trainable_table

ROUNDS = 12
WARM_UP = 2


def step_times(runners: dict[str, Runner], advance: Callable[[], None]) -> dict[str, float]:
    """Median milliseconds of a training step; the methods take turns, so that a busy machine hurts all alike.

    The steps are real ones: they change the models.
    """
    batch = _first_batch(next(iter(runners.values())))
    times: dict[str, list[float]] = {method: [] for method in runners}
    for _ in range(ROUNDS):
        for method, runner in runners.items():
            runner.model.train()
            start = time.perf_counter()
            runner.model.train_step(batch, runner.optim_wrapper)
            times[method].append(1e3 * (time.perf_counter() - start))
            advance()
    return {method: statistics.median(values[WARM_UP:]) for method, values in times.items()}


def activation_mib(runner: Runner) -> float:
    """MiB that autograd keeps from forward to backward for one training batch, parameters left out."""
    model = runner.model.train()
    data = model.data_preprocessor(_first_batch(runner), training=True)
    with SavedTensors(ignore=model.parameters()) as saved:
        losses = model(**data, mode="loss")  # held until counted: its graph owns what is saved
    mib = saved.bytes / 2**20
    del losses
    return mib


def trained_parameters(runner: Runner) -> tuple[int, int]:
    """How many parameters train, in the backbone and in the rest."""
    rows = {row.module: row.trained for row in trainable_table(runner.model, depth=1)}
    return rows["backbone"], rows["total"] - rows["backbone"]


def _first_batch(runner: Runner) -> dict[str, list[Any]]:
    loader = runner.train_dataloader
    return pseudo_collate([loader.dataset[i] for i in range(loader.batch_size)])
