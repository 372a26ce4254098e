"""What loading a state dict would do to a model, which mmengine's non-strict loading does not say before it is done."""

import re
import warnings
from collections.abc import Collection, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import Tensor, nn

from ..text import listed

_MOST_PREFIXES = 40


@dataclass(frozen=True)
class PrefixChange:
    """What to take off and put before a file's keys so that so many of all are names of a model."""

    off: str
    before: str
    count: int
    total: int

    def __str__(self) -> str:
        change = f"with '{self.before}' in place of '{self.off}'" if self.off else f"with '{self.before}' before them"
        change = change if self.before else f"without '{self.off}'"
        return f"{self.count:,} of its {self.total:,} keys would be the model's {change}"


@dataclass
class Fit:
    """What a state dict has of a model. Integers, which no training changes, count nowhere.

    Attributes:
        names: All names in the model, those of integers too.
        loaded: Names in the model that would be loaded.
        missing: Names in the model that it has not.
        reshaped: Names in the model that it has in another shape: its shape, and the model's.
        unexpected: Keys that the model has not.
        prefix: What to change at its keys so that more would be loaded.
    """

    names: set[str] = field(default_factory=set)
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    reshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = field(default_factory=dict)
    unexpected: list[str] = field(default_factory=list)
    prefix: PrefixChange | None = None

    @property
    def count(self) -> str:
        """How many of the model's tensors would be loaded, as text."""
        total = len(self.loaded) + len(self.missing) + len(self.reshaped)
        return f"{len(self.loaded):,} of {total:,} tensors"

    @property
    def kept(self) -> str:
        """What of the model would keep its own values, and why, as text; empty if nothing."""
        shapes = [f"{name} ({old} in the file, not {new})" for name, (old, new) in self.reshaped.items()]
        parts = [f"{len(self.missing):,} missing: {listed(self.missing, 4)}"] if self.missing else []
        return "; ".join(parts + ([f"{len(shapes):,} of another shape: {listed(shapes, 4)}"] if shapes else []))


def fit_of(model: nn.Module, state: Mapping[str, Any]) -> Fit:
    """Find out what mmengine would load of a state dict; the model stays as it is.

    The loading is rehearsed on a copy without values, so that what modules rename, resize or drop while they load
    counts as they have it. Of a model that cannot be copied, names and shapes are compared as they are.

    Args:
        model: The model, or a wrapper.
        state: The state dict, as mmengine would load it.
    """
    try:
        fit = _compared(model.state_dict(), state) if _is_sharded(model) else _rehearsed(model, state)
    except Exception:  # a module may do anything while it is copied or loads
        fit = _compared(model.state_dict(), state)
    if fit.missing or fit.reshaped:
        fit.prefix = prefix_change(fit.names, state.keys())
    return fit


def _rehearsed(model: nn.Module, state: Mapping[str, Any]) -> Fit:
    memo: dict[int, Any] = {}
    for tensor in [*model.parameters(), *model.buffers()]:
        empty = torch.empty_like(tensor, device="meta")
        memo[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty
    fit, metadata = Fit(), getattr(state, "_metadata", None) or {}
    missing: list[str] = []

    def load(module: Any, local: dict[str, Any], prefix: str) -> None:
        while is_model_wrapper(module) or isinstance(module, BaseTTAModel):
            module = module.module
        own: dict[str, Any] = {}
        module._save_to_state_dict(own, prefix, True)
        module._load_from_state_dict(
            local, prefix, metadata.get(prefix[:-1], {}), True, missing, fit.unexpected, []
        )  # mmengine goes through a model in the same way
        for name, tensor in own.items():
            if isinstance(tensor, Tensor):
                _note(fit, name, tensor, local.get(name))
        for name, child in module._modules.items():
            if child is not None:
                start = f"{prefix}{name}."
                load(child, {key: value for key, value in local.items() if key.startswith(start)}, start)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that nothing is copied into a model without values
        load(deepcopy(model, memo), dict(state), "")
    fit.missing = [name for name in fit.missing if name in missing]  # less what modules do without
    return fit


def _is_sharded(model: nn.Module) -> bool:
    return any(cls.__name__ == "FullyShardedDataParallel" for cls in type(model).__mro__)


def _compared(own: Mapping[str, Tensor], state: Mapping[str, Any]) -> Fit:
    fit = Fit(unexpected=[key for key in state if key not in own])
    for name, tensor in own.items():
        _note(fit, name, tensor, state.get(name))
    return fit


def _note(fit: Fit, name: str, own: Tensor, found: Any) -> None:
    fit.names.add(name)
    if not own.is_floating_point():
        return  # indices and counters, which norms of old checkpoints make up while they load
    if not isinstance(found, Tensor):
        fit.missing.append(name)
    elif found.shape == own.shape or (own.ndim == 0 and found.numel() == 1):
        fit.loaded.append(name)
    else:
        fit.reshaped[name] = tuple(found.shape), tuple(own.shape)


def prefix_change(own: Collection[str], keys: Collection[str]) -> PrefixChange | None:
    """What to change at the start of a file's keys so that most of them are names of a model; None if nothing helps.

    Args:
        own: The names.
        keys: The keys.
    """
    own = set(own)
    best, most = None, sum(key in own for key in keys)
    for off in _prefixes(keys):
        rests = [key.removeprefix(off) for key in keys if key.startswith(off)]
        for before in _prefixes(own):
            count = sum(before + rest in own for rest in rests)
            if count > most:
                best, most = PrefixChange(off, before, count, len(keys)), count
    return best if 5 * most >= 4 * min(len(own), len(keys)) else None  # less is another network that shares some names


def _prefixes(names: Collection[str]) -> list[str]:
    """The first one or two steps of names."""
    found = {""} | {match[0] for name in names for depth in (1, 2) if (match := _START[depth].match(name))}
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))[:_MOST_PREFIXES]


_START = {depth: re.compile(rf"(?:[^.]+\.){{{depth}}}") for depth in (1, 2)}
