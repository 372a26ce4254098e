"""Optimizer groups of what trains, and of nothing else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn


class TrainableOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, without what is frozen and with one group for each setting.

    The default makes a group of every single parameter, which keeps an optimizer from working on many at once, writes
    lines about each to the log, and warns about each frozen one. The rules of ``paramwise_cfg`` are the same.
    :class:`~.training_log_hook.TrainingLogHook` logs the groups.
    """

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        """Add the groups of a module to ``params``; see the base class."""
        if prefix:  # the base class goes down by itself
            super().add_params(params, module, prefix, **kwargs)
            return
        single: list[dict[str, Any]] = []
        with _quiet():
            super().add_params(single, module, prefix, **kwargs)
        merged: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = {}
        for group in single:
            trained = [p for p in group.pop("params") if p.requires_grad]
            if trained:
                merged.setdefault(tuple(sorted(group.items())), []).extend(trained)
        params.extend({"params": trained, **dict(settings)} for settings, trained in merged.items())


@contextmanager
def _quiet() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(logging.ERROR)  # logging.disable does not reach what an MMLogger remembers of its levels
    try:
        yield
    finally:
        logger.setLevel(before)
