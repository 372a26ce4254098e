"""Optimizer groups of what trains, and of nothing else."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from mmengine.logging import MMLogger
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from ...text import quoted


class TrainableOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's default constructor, without what is frozen and with one group for each setting.

    The default makes a group of every single parameter, which keeps an optimizer from working on many at once, writes
    lines about each to the log, and warns about each frozen one. The rules of ``paramwise_cfg`` are the same, and there
    is one more: ``part_lr=dict(backbone=1e-4)`` is the learning rate of a part of the model in place of the
    optimizer's, whose multipliers stay. :class:`~.training_log_hook.TrainingLogHook` logs the groups.
    """

    def __init__(self, optim_wrapper_cfg: dict[str, Any], paramwise_cfg: dict[str, Any] | None = None) -> None:
        # without a rule the base class makes no groups, and hands over what is frozen too
        super().__init__(optim_wrapper_cfg, paramwise_cfg or dict(custom_keys={}))

    def add_params(self, params: list[dict[str, Any]], module: nn.Module, prefix: str = "", **kwargs: Any) -> None:
        """Add the groups of a module to ``params``; see the base class.

        Raises:
            ValueError: ``part_lr`` names a part that the model has not.
        """
        if prefix:  # the base class goes down by itself
            super().add_params(params, module, prefix, **kwargs)
            return
        single: list[dict[str, Any]] = []
        with _quiet():
            super().add_params(single, module, prefix, **kwargs)
        self._set_lr_of_parts(single, module)
        merged: dict[tuple[tuple[str, Any], ...], list[nn.Parameter]] = {}
        for group in single:
            trained = [p for p in group.pop("params") if p.requires_grad]
            if trained:
                merged.setdefault(tuple(sorted(group.items())), []).extend(trained)
        params.extend({"params": trained, **dict(settings)} for settings, trained in merged.items())

    def _set_lr_of_parts(self, groups: list[dict[str, Any]], model: nn.Module) -> None:
        part_lr = (self.paramwise_cfg or {}).get("part_lr") or {}
        parts = dict(model.named_children())
        if unknown := [name for name in part_lr if name not in parts]:
            raise ValueError(
                f"optim_wrapper.paramwise_cfg.part_lr names '{unknown[0]}', and the parts of the model are "
                f"{quoted(parts)}"
            )
        lr_of = {id(p): lr for name, lr in part_lr.items() for p in parts[name].parameters()}
        for group in groups:
            lr = lr_of.get(id(group["params"][0]))
            if lr is not None:
                group["lr"] = lr * group.get("lr", self.base_lr) / self.base_lr


@contextmanager
def _quiet() -> Iterator[None]:
    logger = MMLogger.get_current_instance()
    before = logger.level
    logger.setLevel(logging.ERROR)  # logging.disable does not reach what an MMLogger remembers of its levels
    try:
        yield
    finally:
        logger.setLevel(before)
