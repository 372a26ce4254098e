"""Deltas into models and state dicts."""

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..method import PartialLinear
from ..method.memory.held_weight import HeldWeight
from ..method.partial_linear import TrainedChannels
from ..methods.lora_linear import LoRALinear
from ..text import listed
from .delta import Delta
from .digests import base_digests, tensor_digest
from .digests import check_base as compare_base
from .errors import DeltaError

_T = TypeVar("_T")

#: a tensor, some of its rows or None for all, and their values
Write: TypeAlias = tuple[Tensor, Tensor | None, Tensor]


def apply_delta(
    target: nn.Module | MutableMapping[str, Tensor], delta: Delta, *, prefix: str = "", check_base: bool = True
) -> None:
    """Put a delta on its base, in place: all of it, or, where it does not fit, nothing.

    Nothing is cast, and tensors stay on their device. In an adapted model the rows that train follow, whatever its
    channels are; another task's delta may be replaced if the same channels and tensors trained in both. In a state
    dict, tensors are replaced, not written to, and what it lacks of the delta's whole tensors is added.

    Args:
        target: An adapted or a plain model, or a state dict.
        delta: The delta.
        prefix: What the target's names have before the delta's, such as ``'backbone.vit.'``. What has other names is
            left alone.
        check_base: Whether to compare the target with the base that the delta was trained on, by digests of all that
            did not train. This takes most of the time.

    Raises:
        BaseMismatchError: The target is another base.
        DeltaError: Names, shapes or dtypes do not fit.
    """
    with _naming(delta):
        delta.check(allow_nonfinite=True)
        if isinstance(target, nn.Module):
            _write(_checked(target, delta, prefix, check_base), delta)
        else:
            _apply_to_state(target, delta, prefix, check_base)


def check_delta(model: nn.Module, delta: Delta, *, prefix: str = "", check_base: bool = True) -> None:
    """Check that a delta would go on a model; see :func:`apply_delta`. Nothing is written.

    Raises:
        BaseMismatchError: The model is another base.
        DeltaError: Names, shapes or dtypes do not fit.
    """
    with _naming(delta):
        _checked(model, delta, prefix, check_base)


@contextmanager
def _naming(delta: Delta) -> Iterator[None]:
    try:
        yield
    except DeltaError as error:
        if not delta.source:
            raise
        raise type(error)(f"delta '{delta.source}': {error}") from error


def _apply_to_state(state: MutableMapping[str, Tensor], delta: Delta, prefix: str, check_base: bool) -> None:
    tensors = below(_checked_prefix(prefix), state)
    if other := [name for name, tensor in tensors.items() if not isinstance(tensor, Tensor)]:
        raise DeltaError(f"{listed(other)} in the state dict are no tensors; of a checkpoint, give its 'state_dict'")
    _check_fits(tensors, delta, delta.rows.keys())
    if check_base:
        compare_base(delta.header.base, base_digests(tensors, delta.channels, delta.tensors))
    new = {name: _result(name, tensors.get(name), delta) for name in (*delta.rows, *delta.tensors)}
    state.update({prefix + name: tensor for name, tensor in new.items()})


def _checked(
    model: nn.Module, delta: Delta, prefix: str, check_base: bool
) -> tuple[dict[str, Tensor], list[PartialLinear]]:
    """The model's tensors by the delta's names, and its adapted layers, once the delta is known to fit."""
    tensors = below(_checked_prefix(prefix), named_tensors(model))
    _check_fits(tensors, delta, {*delta.rows, *delta.tensors})
    modules = {f"{name}.": module for name, module in model.named_modules(remove_duplicate=False)}
    if any(isinstance(layer, LoRALinear) for layer in below(prefix, modules).values()):
        raise DeltaError("the model trains by LoRA, and its weights are not what it computes with: merge it first")
    layers = [layer for layer in below(prefix, modules).values() if isinstance(layer, PartialLinear)]
    try:
        for layer in layers:
            layer.sync()
    except RuntimeError as error:  # a shard
        raise DeltaError(str(error)) from error
    if check_base:
        compare_base(delta.header.base, base_digests(tensors, delta.channels, delta.tensors))
    _check_tied(tensors, delta)
    return tensors, layers


def _checked_prefix(prefix: str) -> str:
    if prefix and not prefix.endswith("."):
        raise DeltaError(f"prefix='{prefix}' must end in a dot")
    return prefix


def _write(target: tuple[Mapping[str, Tensor], list[PartialLinear]], delta: Delta) -> None:
    tensors, layers = target
    writes = list(writes_of(delta, tensors).values())
    before = [(full, chosen, full.clone() if chosen is None else full[chosen]) for full, chosen, _ in writes]
    try:
        put(writes, layers)
    except BaseException as error:  # Ctrl-C too
        put(before, layers)
        if isinstance(error, RuntimeError):
            raise DeltaError(f"it could not be written, and nothing was: {error}") from error
        raise


def writes_of(
    delta: Delta, tensors: Mapping[str, Tensor], wanted: Callable[[str], bool] = lambda name: True
) -> dict[str, Write]:
    """What putting a delta on writes, on the tensors' devices.

    Args:
        delta: The delta.
        tensors: The target's, by the delta's names.
        wanted: Which names of the delta are taken.
    """
    writes: dict[str, Write] = {}
    for name, value in {**delta.tensors, **delta.rows}.items():
        if wanted(name):
            full, chosen = tensors[name].data, delta.channels_of(name)
            writes[name] = (full, None if chosen is None else chosen.to(full.device), value.to(full.device))
    return writes


def put(writes: Iterable[Write], layers: Iterable[PartialLinear]) -> None:
    """Write to tensors, and let what trains in adapted layers follow.

    Args:
        writes: A tensor, some of its rows or None for all, and their values.
        layers: The adapted layers that hold some of the tensors.
    """
    try:
        for full, chosen, value in writes:
            if chosen is None:
                full.copy_(value)
            else:
                full.index_copy_(0, chosen, value)
        for layer in layers:
            layer.trained.adopt(layer.weight, layer.bias)
    finally:
        torch.clear_autocast_cache()  # of casts of what was there


def named_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The model's own tensors by the names of its state dict."""
    found = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, TrainedChannels):  # rows of a tensor that is named
            continue
        for name, tensor in {**module._parameters, **module._buffers}.items():
            if tensor is not None and name not in module._non_persistent_buffers_set:
                found[f"{path}.{name}" if path else name] = tensor
    return found


def below(prefix: str, names: Mapping[str, _T]) -> dict[str, _T]:
    """The entries whose names begin so, without that beginning."""
    return {name[len(prefix) :]: value for name, value in names.items() if name.startswith(prefix)}


def _check_fits(tensors: Mapping[str, Tensor], delta: Delta, needed: Collection[str]) -> None:
    if missing := set(needed) - tensors.keys():
        have = f"its names look like {listed(tensors.keys(), 3)}" if tensors else "it has no such names"
        raise DeltaError(f"{listed(missing)} are not in the target: {have}; use the same model, and see prefix=")
    if absent := [name for name, tensor in tensors.items() if tensor.is_meta]:
        raise DeltaError(f"{listed(absent)} have no values in the target, being on the meta device")
    wrong = []
    for name, value in {**delta.tensors, **delta.rows}.items():
        tensor = tensors.get(name)
        if tensor is None:
            continue
        chosen = delta.channels_of(name)
        if value.dtype != tensor.dtype:
            wrong.append(f"{name} (is {tensor.dtype}, not {value.dtype})")
        elif chosen is None and value.shape != tensor.shape:
            wrong.append(f"{name} (has the shape {tuple(tensor.shape)}, not {tuple(value.shape)})")
        elif chosen is not None and (tensor.dim() != value.dim() or value.shape[1:] != tensor.shape[1:]):
            wrong.append(f"{name} (has the shape {tuple(tensor.shape)}, and the rows {tuple(value.shape)})")
        elif chosen is not None and int(chosen[-1]) >= len(tensor):
            wrong.append(f"{name} (has {len(tensor)} channels, and {int(chosen[-1])} is to be written)")
        elif not _is_writable(tensor):
            wrong.append(f"{name} (cannot be written to: sharded, expanded or of inference mode)")
    if wrong:
        raise DeltaError(f"{listed(wrong)} do not fit in the target; nothing is cast or cut here")


def _is_writable(tensor: Tensor) -> bool:
    expanded = any(stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))
    inference = tensor.is_inference() and not torch.is_inference_mode_enabled()
    return not (hasattr(tensor, "full_tensor") or expanded or inference)


def _check_tied(tensors: Mapping[str, Tensor], delta: Delta) -> None:
    """Names of one tensor must all get the same values."""
    names = defaultdict(list)
    for name, tensor in tensors.items():
        if tensor.numel():
            memory = tensor.master if isinstance(tensor, HeldWeight) else tensor
            names[tensor.device, memory.data_ptr(), tensor.shape, tensor.stride()].append(name)
    for tied in names.values():
        if len(tied) > 1:
            results = {tensor_digest(_result(name, tensors[name], delta)) for name in tied}
            if len(results) > 1:
                raise DeltaError(f"{listed(tied)} are one tensor in the target, and become different ones in the delta")


def _result(name: str, tensor: Tensor | None, delta: Delta) -> Tensor:
    """What a tensor of the target becomes, as a new one; itself if the delta does not have it."""
    if name in delta.tensors:
        return delta.tensors[name].to("cpu" if tensor is None else tensor.device, copy=True)
    assert tensor is not None
    if (chosen := delta.channels_of(name)) is None:
        return tensor
    return tensor.detach().index_copy(0, chosen.to(tensor.device), delta.rows[name].to(tensor.device))
