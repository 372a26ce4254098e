"""The channels that matter most in a model, to be handed to :func:`~apla_mm.method.adapt`."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..blocks import choose_blocks
from ..projections import Attentions, find_projections
from .scores import gradient_statistics, row_norms, scores_of, scoring_copy
from .selection import Selection, resolve_r, top_channels


def select_channels(
    model: nn.Module,
    r: int | float,
    selection: str,
    batches: Iterable[Any] = (),
    loss: Callable[[nn.Module, Any], Tensor] | None = None,
    *,
    blocks: str | int | Sequence[int] = "all",
    attentions: Attentions | None = None,
) -> dict[str, list[int]]:
    """Choose ``r`` channels of each projection by score; see :mod:`~.scores`.

    ::

        def loss(model, batch):
            return F.cross_entropy(model(batch["images"]), batch["labels"])

        adapt(model, channels=select_channels(model, 64, "fisher", batches, loss))

    The model and torch's random numbers stay as they are: gradients are of a copy, in the model's own mode.

    Args:
        model: Any model that :func:`~apla_mm.method.adapt` takes, with its weights loaded.
        r: How many of each: an int or a fraction.
        selection: ``'magnitude'``, ``'gradient'`` or ``'fisher'``.
        batches: For the last two, batches of training data; each gives one gradient.
        loss: For the last two, the mean loss of the model that it is given and a batch.
        blocks: As of ``adapt``, also for the next.
        attentions: Further kinds of attention.

    Returns:
        The channels, ascending, by the projections' names.

    Raises:
        ValueError: An argument does not fit, or there is no gradient to go by.
    """
    chosen = Selection.of(selection)
    if chosen.type == "random":
        raise ValueError("selection='random' needs no scores: adapt(model, r=..., seed=...) draws channels itself")
    chosen.check_read(r=r, seed=None, channels=None, blocks=blocks)
    if chosen.reads_data is not (loss is not None):
        needs = "needs batches and loss=..." if chosen.reads_data else "reads weights alone: leave loss out"
        raise ValueError(f"selection='{chosen.type}' {needs}")
    projections = choose_blocks(find_projections(model, attentions), blocks)
    counts = {p.name: resolve_r(r, p.linear.out_features, p.name) for p in projections}
    if loss is None:
        statistics = {p.name: row_norms(p.linear) for p in projections}
    else:
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        copy = scoring_copy(model)
        with torch.random.fork_rng(devices), torch.enable_grad():
            statistics = gradient_statistics(
                copy, list(counts), chosen.type, batches, lambda m, b: loss(m, b).backward()
            )
    return {name: top_channels(scores_of(chosen.type, statistics[name]), r, name) for name, r in counts.items()}
