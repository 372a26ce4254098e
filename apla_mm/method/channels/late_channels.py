"""Channels that are chosen after a model was adapted, when it has weights, and data to score them by."""

from dataclasses import replace
from typing import Any

from torch import nn

from ..adapt import Report, adapt
from ..partial_linear import PartialLinear
from .selection import ChannelLists, Selection, listed_channels


def adapt_before_loading(
    model: nn.Module, *, selection: Any = "random", seed: int | None = None, **arguments: Any
) -> Report:
    """Adapt a model whose weights are not loaded yet; by score, channels are chosen afterwards.

    Until :func:`choose_channels` has been called for all of :func:`awaiting`, the model does not train.

    Args:
        model: As of :func:`~apla_mm.method.adapt`, also for the others.
        selection: Any, by data too.
        seed: Draws the channels.
        **arguments: Further ones of ``adapt``.

    Returns:
        The report. Channels that are still to be chosen are in it as many others.

    Raises:
        ValueError: As of ``adapt``.
    """
    how = Selection.of(selection)
    if how.type == "random":
        return adapt(model, seed=seed, **arguments)
    how.check_read(
        r=arguments.get("r"), seed=seed, channels=arguments.get("channels"), blocks=arguments.get("blocks", "all")
    )
    report = adapt(model, **arguments)
    for module in model.modules():
        if isinstance(module, PartialLinear):
            module.trained.awaits = how
    return replace(report, arguments={**report.arguments, "seed": None, "selection": how.as_argument()})


def awaiting(model: nn.Module) -> dict[Selection, list[str]]:
    """Names of the projections whose channels are still to be chosen, by what they are chosen by."""
    found: dict[Selection, list[str]] = {}
    for name, module in model.named_modules():
        if isinstance(module, PartialLinear) and module.trained.awaits is not None:
            found.setdefault(module.trained.awaits, []).append(name)
    return found


def choose_channels(model: nn.Module, lists: ChannelLists) -> None:
    """Have other channels of adapted projections train, as many as before, before training begins.

    What trains stays in the same parameters, with other values: optimizers and wrappers need not know.

    Args:
        model: An adapted model, not its DDP wrapper.
        lists: The channels by the projections' names.

    Raises:
        ValueError: A list does not fit. The model is as it was.
    """
    plan = []
    for name, listed in lists.items():
        linear = model.get_submodule(name)
        if not isinstance(linear, PartialLinear):
            raise ValueError(f"channels are listed for '{name}', which is no projection of which some channels train")
        chosen = listed_channels(lists, name, linear.out_features)
        if len(chosen) != len(linear.trained.chosen):
            raise ValueError(
                f"{len(listed)} channels are listed for '{name}', of which {len(linear.trained.chosen)} train: "
                "set r as it was when they were chosen"
            )
        plan.append((linear, chosen))
    for linear, chosen in plan:
        linear.choose(chosen)
