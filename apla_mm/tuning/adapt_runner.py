"""Adapts the model of a runner that is about to train."""

import gc
from collections.abc import Container, Mapping, Sequence
from typing import Any

from mmengine.runner import Runner
from torch import nn
from torch.optim import Optimizer

from ..method import PartialLinear, Report, find_projections
from ..method.channels.late_channels import adapt_before_loading
from ..method.class_change import Changed, change_back
from ..method.wrappers import unwrapped
from .frozen_parts import check_not_frozen_by_itself, check_train_keeps, modes_kept, requires_grad_of
from .optimizers.parameter_groups import optimizers_of


def adapt_runner(runner: Runner, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Report]:
    """Adapt parts of a runner's model after its optimizer was built and before its weights are loaded.

    The optimizer's groups keep their settings and hold exactly what trains: the chosen channels stand where the
    projection's weight and bias stood. A model that was wrapped for several processes must be wrapped anew, since the
    old wrapper waits for the gradients of what is frozen now.

    What a model freezes itself, when it is built or each time that it is set to train, must not be among what adapting
    trains. After a refusal the model is as it was.

    Args:
        runner: The runner.
        options: Dotted path of each part, such as ``'backbone'``, to the arguments of :func:`apla_mm.adapt` for it;
            ``selection`` may be any.

    Returns:
        What was done to each part.

    Raises:
        ValueError: A part does not exist, cannot be adapted so, or freezes itself what would train.
    """
    model = unwrapped(runner.model)
    as_built = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    plain = [name for name, module in model.named_modules() if not isinstance(module, Changed)]
    try:
        reports = adapt_parts(model, options)
    except Exception:
        for name in plain:
            change_back(model.get_submodule(name))
        for parameter, trained in as_built:
            parameter.requires_grad_(trained)
        raise
    for optimizer in optimizers_of(runner.optim_wrapper):
        hold_what_trains(optimizer, model)
    return reports


def adapt_parts(model: nn.Module, options: Mapping[str, Mapping[str, Any]]) -> dict[str, Report]:
    """Adapt parts of a plain model and see that it leaves them to train; arguments and errors of :func:`adapt_runner`.

    After a refusal some parts may be adapted.
    """
    with modes_kept(model):
        model.train()  # what is frozen then only is frozen by the model itself too
    reports = {}
    for target, arguments in options.items():
        try:
            part = find_target(model, target)
            before = requires_grad_of(part)
            reports[target] = adapt_before_loading(part, **arguments)
            projections = find_projections(part, arguments.get("attentions"))
            check_not_frozen_by_itself(part, before, [projection.name for projection in projections])
        except ValueError as error:
            raise ValueError(f"APLAHook, target '{target}': {error}") from error
    try:
        check_train_keeps(model)
    except ValueError as error:
        raise ValueError(f"APLAHook: {error}") from error
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


def adapted_by_itself(model: nn.Module) -> list[nn.Module]:
    """Parts of a model that adapted themselves when they were built."""
    parts = [module for module in model.modules() if isinstance(getattr(module, "report", None), Report)]
    return parts or [c for c in model.children() if any(isinstance(m, PartialLinear) for m in c.modules())]


def check_adapted(model: nn.Module, parts: Sequence[nn.Module]) -> None:
    """Check that a model's ``train()`` leaves what trains of its adapted parts; see :func:`check_train_keeps`."""
    adapted = {id(parameter) for part in parts for parameter in part.parameters()}
    check_train_keeps(model, [name for name, parameter in model.named_parameters() if id(parameter) in adapted])


def hold_what_trains(optimizer: Optimizer, model: nn.Module) -> None:
    """Have an optimizer's groups hold exactly what trains of a model that was changed after they were made.

    What the model has got since stands where the parameter stands beside which it is, with that group's settings: of
    the innermost module around it that the optimizer holds something of, the parameter of the same name, or the weight,
    or else the first.

    Args:
        optimizer: Made for the plain model.
        model: The model, not wrapped.
    """
    held = {p for group in optimizer.param_groups for p in group["params"]}
    new: dict[nn.Parameter, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter not in held and (place := beside_which(model, name, held)) is not None:
            new.setdefault(place, []).append(parameter)
    for group in optimizer.param_groups:
        # a group that becomes empty stays: schedulers count groups
        group["params"] = [q for p in group["params"] for q in (p, *new.get(p, ())) if q.requires_grad]


def beside_which(model: nn.Module, name: str, held: Container[nn.Parameter]) -> nn.Parameter | None:
    """The parameter that an optimizer holds beside which a new one stands; see :func:`hold_what_trains`."""
    path, _, leaf = name.rpartition(".")
    while path:
        module = model.get_submodule(path)
        own = dict(module.named_parameters(recurse=False))
        for candidate in (own.get(leaf), own.get("weight"), *module.parameters()):
            if candidate is not None and candidate in held:
                return candidate
        path = path.rpartition(".")[0]
    return None


def check_checkpointing(runner: Runner, cure: str) -> None:
    """Check that the config does not ask for mmengine's activation checkpointing.

    Raises:
        ValueError: It does.
    """
    if runner.cfg.get("activation_checkpointing"):
        raise ValueError(
            "activation_checkpointing: mmengine's gives no gradient to blocks behind a frozen stem, and they would not "
            f"train; leave it out; {cure}"
        )


def wrap_anew(runner: Runner, model: nn.Module) -> None:
    """Wrap a runner's model for several processes again: an old wrapper waits for gradients of what is frozen now."""
    runner.model = model
    gc.collect()  # with the old wrapper go the hooks that it left on the parameters
    runner.model = runner.wrap_model(runner.cfg.get("model_wrapper_cfg"), model)
