"""Adapts the model of a runner that is about to train."""

from collections.abc import Mapping
from typing import Any

from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from ..method import PartialLinear, Report, adapt
from ..method.wrappers import unwrapped
from .parameter_groups import optimizers_of


def adapt_runner(runner: Runner, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Report]:
    """Adapt parts of a runner's model after its optimizer was built and before its weights are loaded.

    The optimizer's groups keep their settings and hold exactly what trains: the chosen channels stand where the
    projection's weight and bias stood. A model that was wrapped for several processes must be wrapped anew, since the
    old wrapper waits for the gradients of what is frozen now.

    Args:
        runner: The runner.
        options: Dotted path of each part, such as ``'backbone'``, to the arguments of :func:`apla_mm.adapt` for it.

    Returns:
        What was done to each part.

    Raises:
        ValueError: A part does not exist, or cannot be adapted so.
    """
    model = unwrapped(runner.model)
    reports = {}
    for target, arguments in options.items():
        try:
            reports[target] = adapt(find_target(model, target), **arguments)
        except ValueError as error:
            raise ValueError(f"APLAHook, target '{target}': {error}") from error
    for optimizer in optimizers_of(runner.optim_wrapper):
        _hold_what_trains(optimizer, model)
    return reports


def find_target(model: nn.Module, target: str) -> nn.Module:
    """The submodule at a dotted path.

    Raises:
        ValueError: There is none; the message lists what there is.
    """
    part = model
    for depth, step in enumerate(target.split(".")):
        children = dict(part.named_children())
        if step not in children:
            place = ".".join(target.split(".")[:depth]) or "the model"
            raise ValueError(f"{place} has no part '{step}'; it has {', '.join(children) or 'none'}")
        part = children[step]
    return part


def _hold_what_trains(optimizer: Optimizer, model: nn.Module) -> None:
    rows = {
        getattr(module, name): parameter
        for module in model.modules()
        if isinstance(module, PartialLinear)
        for name, parameter in module.trained.named_parameters()
    }
    for group in optimizer.param_groups:
        # a group that becomes empty stays: schedulers count groups
        group["params"] = [p for p in (rows.get(p, p) for p in group["params"]) if p.requires_grad]
