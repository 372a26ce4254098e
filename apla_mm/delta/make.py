"""Deltas, made of a trained model, of a checkpoint and its base, or of a checkpoint and its base's digests.

What trained is known in three ways; a delta is made of it in one, :func:`_make`.
"""

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import torch
from torch import Tensor, nn

from ..method import PartialLinear
from ..method.names import projection_of, tensors_of
from ..methods.lora_linear import LoRALinear
from ..text import listed, quoted
from .delta import Delta
from .digests import base_digests
from .errors import DeltaError
from .header import Header


def extract_delta(
    model: nn.Module,
    *,
    state: Mapping[str, Tensor] | None = None,
    digests: Mapping[str, str] | None = None,
    **about: Any,
) -> Delta:
    """What trained in an adapted model.

    That is the chosen channels, every other parameter that requires a gradient, and the buffers that may have moved:
    all but those of a module whose own parameters are all frozen. Running statistics move even there and are taken.

    Args:
        model: An adapted model, not its DDP wrapper: names are those of its state dict.
        state: A state dict of the same names to take the values from, such as that of this model's EMA; the model's own
            otherwise.
        digests: Of what did not train, if known, such as the ``header.base`` of an earlier delta of this training;
            they are computed otherwise.
        **about: Further fields of :class:`Header`: r, seed, selection, config, metrics, iteration, extra.

    Returns:
        The delta, copied to the CPU.

    Raises:
        DeltaError: Nothing trains, or something in the state dict cannot be in a delta.
    """
    own = model.state_dict()
    if state is not None and (wrong := state.keys() ^ own.keys()):
        raise DeltaError(f"the state dict is not of this model: {listed(wrong)} are in one of them alone")
    state = _checked_state(own if state is None else state, "model")
    channels = {
        name: module.trained.channels
        for name, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PartialLinear)
    }
    rows = _row_names(channels, state)
    # A tensor that is in two places trains in both, be it the weight of a projection, whose rows are written to.
    trained = {id(tensor) for tensor in _trained_tensors(model)}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    trained |= {id(tensors[name]) for name in rows if name in tensors}
    whole = {name for name, tensor in tensors.items() if id(tensor) in trained and name in state} - rows.keys()
    if digests is not None and (wrong := digests.keys() ^ (state.keys() - whole)):
        raise DeltaError(f"digests= does not fit what trains: those of {listed(wrong)} are missing or too many")
    return _make(state, channels, rows, whole, digests, about)


def extract_delta_from_states(
    trained: Mapping[str, Tensor],
    base: Mapping[str, Tensor],
    channels: Mapping[str, Tensor] | None = None,
    **about: Any,
) -> Delta:
    """What differs, to the bit, between a checkpoint's state dict and that of its base.

    A linear layer of which some rows are equal becomes channels, every other tensor that differs, or that the base
    lacks, is taken whole. What only the base has is left out.

    Args:
        trained: The state dict after training.
        base: The state dict before it, with the same names.
        channels: Of the projections by name, the output channels that trained, int64 (r,), ascending, if they are
            known: they are then taken as they are, and no other layer's rows are.
        **about: Further fields of :class:`Header`: r, seed, selection, config, metrics, iteration, extra.

    Returns:
        The delta, copied to the CPU.

    Raises:
        DeltaError: Nothing differs, a dtype does, or ``channels`` do not fit.
    """
    trained, base = _checked_state(trained, "trained"), _checked_state(base, "base")
    common = {name for name in trained.keys() & base.keys() if trained[name].shape == base[name].shape}
    if cast := [name for name in common if trained[name].dtype != base[name].dtype]:
        name = min(cast)
        raise DeltaError(
            f"{listed([name])} is {trained[name].dtype} in the trained state and {base[name].dtype} in the base, as "
            f"are {len(cast) - 1} others: nothing is cast here; give both as they were in training"
        )
    changed = {name: _changed_rows(trained[name], base[name]) for name in sorted(common)}
    whole = trained.keys() - common | {name for name, rows in changed.items() if rows.any()}
    if channels is None:
        found = dict(_changed_channels(trained, changed))
    else:
        found = {name: chosen.to("cpu") for name, chosen in channels.items()}
        for name, chosen in found.items():
            _check_given(name, chosen, trained, changed)
    rows = _row_names(found, trained)
    return _make(trained, found, rows, whole - rows.keys(), None, about)


def extract_delta_from_digests(
    state: Mapping[str, Tensor], base: Mapping[str, str], channels: Mapping[str, Tensor], **about: Any
) -> Delta:
    """What of a state dict is not in its base: the channels, what the base lacks, and what moved though it was frozen.

    Args:
        state: The state dict after training.
        base: Digests of the base's tensors, of :func:`~.digests.base_digests` with ``channels``.
        channels: Of the projections by name, the output channels that train, int64 (r,). A projection of which others
            moved too is taken whole.
        **about: Further fields of :class:`Header`: r, seed, selection, config, metrics, iteration, extra.

    Returns:
        The delta, copied to the CPU.

    Raises:
        DeltaError: The state dict lacks tensors of the base.
    """
    if missing := base.keys() - state.keys():
        raise DeltaError(f"{listed(missing)} of the base are not in the state dict that is saved")
    found = base_digests({name: state[name] for name in base}, channels)
    same = {name for name, digest in found.items() if digest == base[name]}
    kept = {name: chosen for name, chosen in channels.items() if same.issuperset(tensors_of(name, state))}
    whole = {name for name in channels.keys() - kept.keys() for name in tensors_of(name, state)}
    digests = {name: found[name] for name in same - whole}
    rows = _row_names(kept, state)
    return _make(state, kept, rows, state.keys() - digests.keys(), digests, about)


def _make(
    state: Mapping[str, Tensor],
    channels: Mapping[str, Tensor],
    rows: Mapping[str, str],
    whole: Set[str],
    digests: Mapping[str, str] | None,
    about: Mapping[str, Any],
) -> Delta:
    digests = base_digests(state, channels, whole) if digests is None else dict(digests)
    delta = Delta(
        channels={name: _copied(chosen) for name, chosen in channels.items()},
        rows={
            name: _copied(state[name].detach().index_select(0, channels[projection].to(state[name].device)))
            for name, projection in rows.items()
        },
        tensors={name: _copied(state[name]) for name in sorted(whole)},
        header=Header(base=digests, **about),
    )
    delta.check(allow_nonfinite=True)
    return delta


def _copied(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _checked_state(state: Mapping[str, Any], what: str) -> dict[str, Tensor]:
    for name, tensor in state.items():
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
            kind = type(tensor).__name__ if not isinstance(tensor, Tensor) else f"{tensor.layout} on {tensor.device}"
            raise DeltaError(
                f"{listed([name])} in the state dict ({what}) is no plain tensor but {kind}; of a checkpoint, give its "
                "'state_dict'"
            )
    return {name: tensor.detach() for name, tensor in state.items()}


def _row_names(channels: Iterable[str], state: Mapping[str, Tensor]) -> dict[str, str]:
    """Name of a tensor of which rows train -> its projection."""
    return {name: projection for projection in channels for name in tensors_of(projection, state)}


def _trained_tensors(model: nn.Module) -> Iterator[Tensor]:
    for module in model.modules():
        if isinstance(module, LoRALinear):  # in a state dict what trains beside the weight is in it
            yield module.weight
        parameters = list(module.parameters(recurse=False))
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        yield from trained
        if trained or not parameters or getattr(module, "running_mean", None) is not None:
            yield from module.buffers(recurse=False)


def _changed_rows(a: Tensor, b: Tensor) -> Tensor:
    """Which rows differ, to the bit: bool (out,), on the CPU; of a scalar (1,)."""
    if not a.numel():
        return torch.zeros(a.shape[:1], dtype=torch.bool)
    b = b.to(a.device)
    a, b = (t.contiguous().reshape(len(t) if t.dim() else 1, -1).view(torch.uint8) for t in (a, b))
    return (a != b).any(1).cpu()


def _changed_channels(state: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    for name, rows in changed.items():
        projection = projection_of(name)
        if not projection or not name.endswith("weight"):
            continue
        if state[name].dim() != 2 or not state[name].is_floating_point():
            continue
        for bias in tensors_of(projection, state)[1:]:
            if state[bias].shape != rows.shape or bias not in changed:
                break  # it is something else, or new
            rows = rows | changed[bias] if rows.any() else rows
        else:
            if rows.any() and not rows.all():
                yield projection, rows.nonzero().flatten()


def _check_given(name: str, chosen: Tensor, trained: Mapping[str, Tensor], changed: Mapping[str, Tensor]) -> None:
    if missing := [tensor for tensor in {f"{name}.weight", *tensors_of(name, trained)} if tensor not in changed]:
        raise DeltaError(
            f"channels are given for '{name}', but there is no {quoted(missing)} of one shape in both states"
        )
    for tensor in tensors_of(name, changed):
        rows = changed[tensor]
        if len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < len(rows):
            raise DeltaError(f"the channels given for '{name}' are not all in [0, {len(rows)})")
        others = rows.clone()
        others[chosen] = False
        if others.any():
            raise DeltaError(
                f"rows {others.nonzero().flatten()[:5].tolist()} of '{tensor}' differ from the base, and are not "
                "among the channels given: was this trained from another base, or with other channels?"
            )
