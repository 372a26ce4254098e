"""Deltas out of full checkpoints, and full checkpoints out of deltas."""

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..delta import Delta, DeltaError, extract_delta_from_states
from ..delta.base_file import BASE_FILE, base_name, merged_state
from ..delta.weights_file import Weights
from ..loading.delta_meta import APLA_KEY, chosen_in, extra_of, meta_of, scores_of, with_versions
from ..method.channels.selection import ChannelLists, load_channels
from ..text import listed


def delta_of(
    checkpoint: Weights,
    base: Mapping[str, Tensor],
    *,
    base_prefix: str = "",
    channels: ChannelLists | str | Path | None = None,
    metrics: Mapping[str, Any] | None = None,
) -> tuple[Delta, dict[str, Tensor]]:
    """What training changed of a base.

    Config, iteration and, of a checkpoint that was saved right after its validation, metrics are taken from it.

    Args:
        checkpoint: After training.
        base: The state dict before.
        base_prefix: What the checkpoint's names have before the base's, such as ``'backbone.vit.'``.
        channels: The channels that trained, or a JSON file of them; found by what differs otherwise. A projection may
            be named without what comes before its name in the checkpoint.
        metrics: Of the evaluation, instead of those in the checkpoint.

    Returns:
        The delta, which names its base file, and what belongs into that.

    Raises:
        DeltaError: The base has nothing of the checkpoint, nothing differs, or the channels do not fit.
        FileNotFoundError: The file of channels is not there.
        ValueError: It is no such file.
    """
    base = {base_prefix + name: tensor for name, tensor in base.items()}
    text = checkpoint.meta.get("cfg")
    config = text if isinstance(text, str) else ""
    delta = extract_delta_from_states(
        checkpoint.state,
        base,
        None if channels is None else _named(load_channels(channels), checkpoint.state),
        **chosen_in(checkpoint.meta),
        config=config,
        iteration=iteration if type(iteration := checkpoint.meta.get("iter")) is int else None,
        metrics=scores_of(checkpoint.rest) if metrics is None else dict(metrics),
        extra=extra_of(checkpoint.meta, checkpoint.state),
    )
    if not delta.header.base:
        raise DeltaError(
            f"nothing of the checkpoint is equal in the base: the base has {listed(base.keys(), 3)}, the checkpoint "
            f"{listed(checkpoint.state.keys(), 3)}; see --base-prefix, and give the weights that it was trained from"
        )
    base = {name: base[name] for name in sorted(delta.header.base)}
    extra = {**delta.header.extra, BASE_FILE: base_name(base)}
    sizes = {len(chosen) for chosen in delta.channels.values()}
    r = sizes.pop() if delta.header.r is None and len(sizes) == 1 else delta.header.r
    return replace(delta, header=replace(delta.header, r=r, extra=extra)), base


def merged_checkpoint(
    delta: Delta, base: Mapping[str, Tensor], check_base: bool = True
) -> tuple[OrderedDict[str, Tensor], dict[str, Any]]:
    """Put a delta on its base.

    Args:
        delta: The delta.
        base: The state dict before training.
        check_base: Whether to compare it with the one that the delta was trained on.

    Returns:
        The state dict after training, bit by bit, and the ``meta`` of a checkpoint, with what mmengine's tools look
        for in it, as far as it is known.

    Raises:
        BaseMismatchError: It is another base.
        DeltaError: The base lacks tensors, or they do not fit.
    """
    state = with_versions(merged_state(delta, base, check_base), delta.header)
    meta = meta_of(delta.header)
    if delta.header.config:
        meta["cfg"] = delta.header.config
    if delta.header.iteration is not None:
        meta.setdefault("iter", delta.header.iteration)
    asked = {"r": delta.header.r, "seed": delta.header.seed, **delta.header.selection}
    if asked := {key: value for key, value in asked.items() if value is not None}:
        meta[APLA_KEY] = asked
    return state, meta


def _named(lists: ChannelLists, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Channels by the projections' names in a state dict, checked as far as the state dict is not needed for it."""
    found: dict[str, Tensor] = {}
    for name, chosen in lists.items():
        fitting = [key[: -len(".weight")] for key in state if f".{key}".endswith(f".{name}.weight")]
        if len(fitting) != 1:
            raise DeltaError(
                f"channels are listed for '{name}', and of the checkpoint's tensors {len(fitting)} are called so"
                f"{': ' + listed(fitting) if fitting else ''}; name the projections as in the checkpoint"
            )
        if not chosen or any(type(channel) is not int or channel < 0 for channel in chosen):
            raise DeltaError(f"the channels listed for '{name}' must be ints that are not negative, and at least one")
        if len(set(chosen)) != len(chosen):
            raise DeltaError(f"the channels listed for '{name}' must be distinct")
        found[fitting[0]] = torch.tensor(sorted(chosen), dtype=torch.int64)
    return found
