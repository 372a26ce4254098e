"""Frozen weights that are held in the dtype that autocast computes in: cast once, not in every step."""

from collections import Counter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..class_change import Changed, change, change_back
from ..partial_linear import PartialLinear
from .held_weight import HeldWeight, held, unheld

#: ``float32`` holds weights as they are
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_MULTIHEAD = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


class _HoldsWeights(Changed):
    """Has frozen weights that are held; its state dict has them as they are in the host's memory, plain float32."""

    def _held(self) -> dict[str, HeldWeight]:
        parameters: dict[str, Any] = self._parameters
        return {name: weight for name, weight in parameters.items() if isinstance(weight, HeldWeight)}

    def train(self, mode: bool = True) -> Any:
        """As of the plain module; takes over what was written where no version counter sees it."""
        for weight in self._held().values():
            weight.refresh()
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = self._held()
        masters = {name: weight.master.data for name, weight in before.items()}
        for name, weight in before.items():
            self._parameters[name] = unheld(weight)
        try:
            return super()._apply(fn, recurse)
        finally:
            for name, weight in before.items():
                _hold(self, name, weight.low.dtype)
                now = self._parameters[name]
                if isinstance(now, HeldWeight) and _same(now.master, masters[name]):
                    now.master.data = masters[name]  # moved alone: the memory that it had, a mapped file's perhaps

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if not keep_vars:
            for name, weight in self._held().items():
                destination[prefix + name] = weight.master.detach()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        before = self._held()
        super()._load_from_state_dict(*args, **kwargs)
        for name, weight in before.items():
            if self._parameters[name] is not weight:  # by assign=True
                _hold(self, name, weight.low.dtype)

    def _before_change_back(self) -> None:
        for name, weight in self._held().items():
            self._parameters[name] = unheld(weight)


def check_frozen_dtype(dtype: str) -> None:
    """Refuse a dtype that frozen weights cannot be held in.

    Raises:
        ValueError: It is none of :data:`DTYPES`.
    """
    if dtype not in DTYPES:
        raise ValueError(f"frozen_dtype={dtype!r} must be one of {', '.join(map(repr, DTYPES))}")


def hold_frozen(model: nn.Module, dtype: str) -> list[str]:
    """Hold frozen weights in the dtype that autocast computes in, in place; an earlier choice is undone.

    Autocast casts a frozen weight at each use, and autograd keeps the cast until backward. Held, it is cast once. These
    are the weights of linear layers, convolutions and ``nn.MultiheadAttention`` that are float32, frozen and in one
    place of the model, but for projections of which channels train. Norms, embeddings and biases stay what they are.

    Where autocast runs such a layer in this dtype, outputs and gradients are the same to the bit. Everywhere else, as
    without autocast, the layer computes with the float32 weights, which on a GPU are then brought there each time.

    On a GPU a held weight takes half the memory, and the float32 one lies in the host's. On a CPU both lie there: the
    casts that autograd keeps are spared, and weights take half as much again.

    The state dict has the plain float32 tensors, in the host's memory; what is loaded, moved, copied or written in
    place goes into both. What is written through ``.data`` of tensors of a state dict counts from the next ``train()``
    or ``eval()`` on.

    Args:
        model: A model, adapted or not, its ``requires_grad`` set.
        dtype: ``'bfloat16'`` or ``'float16'``; ``'float32'`` holds nothing.

    Returns:
        The names of the weights that are held.

    Raises:
        ValueError: There is no such dtype.
    """
    check_frozen_dtype(dtype)
    release_frozen(model)
    if dtype == "float32":
        return []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    places = Counter(map(id, parameters.values()))
    names = []
    for path, module in model.named_modules():
        for name in _weights_of(module):
            parameter = module._parameters.get(name)
            if parameter is None or not _can_be_held(parameter) or places[id(parameter)] > 1:
                continue
            if not isinstance(module, _HoldsWeights):
                module = change(module, _HoldsWeights)
            _hold(module, name, DTYPES[dtype])
            names.append(f"{path}.{name}" if path else name)
    return names


def release_frozen(model: nn.Module) -> None:
    """Have all weights plain again, on the model's device."""
    for module in model.modules():
        change_back(module, _HoldsWeights)


def held_names(model: nn.Module) -> list[str]:
    """The names of the weights of a model that are held."""
    return [name for name, parameter in model.named_parameters() if isinstance(parameter, HeldWeight)]


def _weights_of(module: nn.Module) -> tuple[str, ...]:
    if isinstance(module, nn.MultiheadAttention):
        return _MULTIHEAD
    if isinstance(module, nn.Linear | _ConvNd) and not isinstance(module, PartialLinear):
        return ("weight",)
    return ()


def _can_be_held(parameter: Tensor) -> bool:
    plain = not is_lazy(parameter) and not is_traceable_wrapper_subclass(parameter)
    return plain and parameter.dtype == torch.float32 and not parameter.requires_grad and not parameter._is_view()


def _hold(module: nn.Module, name: str, dtype: torch.dtype) -> None:
    parameter = module._parameters[name]
    if parameter is not None and _can_be_held(parameter):
        module._parameters[name] = held(parameter, dtype)  # type: ignore[assignment]


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two float32 tensors in the host's memory are so to the bit."""
    if one is other or one.device != other.device or one.shape != other.shape or one.stride() != other.stride():
        return False
    if one.is_meta:
        return False
    return torch.equal(one.detach().view(torch.int32), other.detach().view(torch.int32))
