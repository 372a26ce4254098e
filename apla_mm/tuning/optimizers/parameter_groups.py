"""An optimizer's settings for each part of a model, under names that a person understands."""

import posixpath
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from mmengine.optim import OptimWrapper, OptimWrapperDict
from torch import nn
from torch.optim import Optimizer

from ...text import table


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that train alike.

    Attributes:
        name: What they have in common, such as ``backbone`` or ``decode_head+auxiliary_head``.
        parameters: Their names in the model.
        count: How many numbers they hold.
        lr: The learning rate before any schedule.
        weight_decay: The weight decay; None if it is not the same for all.
    """

    name: str
    parameters: tuple[str, ...]
    count: int
    lr: float
    weight_decay: float | None
    optimizer: Optimizer
    index: int

    @property
    def current_lr(self) -> float:
        """The learning rate now."""
        return float(self.optimizer.param_groups[self.index]["lr"])


def groups_by_settings(wrapper: OptimWrapper | OptimWrapperDict, model: nn.Module) -> list[ParameterGroup]:
    """One group for each learning rate and weight decay, however many groups the optimizer has.

    Args:
        wrapper: The model's optimizer or optimizers.
        model: The model, not wrapped.

    Returns:
        The groups, in the optimizer's order, with distinct names. Frozen parameters are in none.
    """
    return _merged(wrapper, model, lambda lr, decay: (lr, decay))


def groups_by_lr(wrapper: OptimWrapper | OptimWrapperDict, model: nn.Module) -> list[ParameterGroup]:
    """One group for each learning rate; see :func:`groups_by_settings`.

    mmengine's schedulers treat all groups of an optimizer alike, so that equal learning rates stay equal.
    """
    return _merged(wrapper, model, lambda lr, decay: (lr,))


def format_groups(groups: list[ParameterGroup]) -> str:
    """A table of the groups as text."""
    decays = ("mixed" if group.weight_decay is None else f"{group.weight_decay:g}" for group in groups)
    rows = ((g.name, f"{g.count:,}", f"{g.lr:.4g}", decay) for g, decay in zip(groups, decays, strict=True))
    return table(("group", "trained", "lr", "weight decay"), rows)


def _merged(
    wrapper: OptimWrapper | OptimWrapperDict, model: nn.Module, key: Callable[[float, float], tuple[float, ...]]
) -> list[ParameterGroup]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for number, optimizer in enumerate(optimizers_of(wrapper)):
        for index, group in enumerate(optimizer.param_groups):
            trained = [p for p in group["params"] if p.requires_grad]
            if not trained:
                continue
            lr, decay = float(group.get("initial_lr", group["lr"])), float(group.get("weight_decay", 0.0))
            one = found.setdefault(
                (number, *key(lr, decay)),
                dict(parameters=[], count=0, lr=lr, decays=set(), optimizer=optimizer, index=index),
            )
            # parameters of a loss, say, are not the model's
            one["parameters"].extend(names.get(id(p), "others") for p in trained)
            one["count"] += sum(p.numel() for p in trained)
            one["decays"].add(decay)
    groups = []
    for one in found.values():
        decays = one.pop("decays")
        groups.append(dict(one, weight_decay=decays.pop() if len(decays) == 1 else None))
    return [
        ParameterGroup(name, tuple(group.pop("parameters")), **group)
        for name, group in zip(_names(groups), groups, strict=True)
    ]


def optimizers_of(wrapper: OptimWrapper | OptimWrapperDict) -> Iterator[Optimizer]:
    """The optimizers in mmengine's wrapper."""
    wrappers = wrapper.optim_wrappers.values() if isinstance(wrapper, OptimWrapperDict) else [wrapper]
    for one in wrappers:
        yield one.optimizer


def _names(groups: list[dict[str, Any]]) -> list[str]:
    parts = [_parts(group["parameters"]) for group in groups]
    ends = [
        " no decay" if group["weight_decay"] == 0 and parts.count(part) > 1 else ""
        for group, part in zip(groups, parts, strict=True)
    ]
    names = [part + end for part, end in zip(parts, ends, strict=True)]
    paths = [
        (_common_path(group["parameters"]) or part) + end for group, part, end in zip(groups, parts, ends, strict=True)
    ]
    names = [path if names.count(name) > 1 else name for name, path in zip(names, paths, strict=True)]
    return [f"{name} {names[: i + 1].count(name)}" if names.count(name) > 1 else name for i, name in enumerate(names)]


def _parts(parameters: list[str], most: int = 3) -> str:
    """The parts of the model that hold the parameters."""
    parts = list(dict.fromkeys(name.split(".")[0] for name in parameters))
    if len(parts) > most:
        parts = [*parts[: most - 1], f"{len(parts) - most + 1} others"]
    return "+".join(parts)


def _common_path(parameters: list[str]) -> str:
    return posixpath.commonpath([name.replace(".", "/") for name in parameters]).replace("/", ".")
