"""A frozen float32 weight that is on its device in half precision, and whole in the host's memory.

::

    autocast:   F.linear(x, w)  ->  w.to(bfloat16)  ->  low        as it lies there: nothing is made, nothing is kept
    all else:   w + 1, w.t(), w.cpu(), ...          ->  master     float32, brought to the device for the moment
    writing:    w.copy_(...), w.normal_(), ...      ->  master, and low is rounded from it again
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

_CAST = torch.ops.aten._to_copy.default
#: arguments of a cast that change nothing but the dtype
_PLAIN = {"layout": (None, torch.strided), "pin_memory": (None, False), "memory_format": (None, torch.preserve_format)}


class _Held:
    """The two copies, and what is known of writes to them.

    Attributes:
        master: The plain parameter, float32, in the host's memory.
        low: Its values rounded, on the device.
        writes: How often the weight was written to.
        seen: Version of the master that ``low`` is of.
    """

    def __init__(self, master: Tensor, low: Tensor) -> None:
        self.master, self.low, self.writes, self.seen = master, low, 0, _version(master)

    def refresh(self) -> None:
        with torch.no_grad():
            self.low.copy_(self.master)
        self.seen = _version(self.master)


class HeldWeight(Tensor):
    """A parameter that is float32 for all who read it, and takes half the memory on its device.

    Casting it to its low dtype, as autocast does, gives what is held, not a copy. Everything else computes with the
    float32 values. What is written to it goes to both copies. Through ``.data`` of a tensor from a state dict, or of a
    view, it cannot be seen: call :meth:`refresh` then.

    Args:
        master: The plain parameter, float32, in the host's memory. It is kept.
        low: Its values in another dtype, on the device where it acts.
    """

    # of torch's functions none is changed: operators are
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    _held: _Held
    _is_param: bool
    _seen: tuple[int, int]  # its own version, and how often it was written to, when both were last compared

    @staticmethod
    def __new__(cls, master: Tensor, low: Tensor) -> "HeldWeight":
        weight = cls._of(_Held(master, low))
        weight._is_param = True  # for isinstance of nn.Parameter
        return weight

    @classmethod
    def _of(cls, held: _Held) -> "HeldWeight":
        weight: HeldWeight = Tensor._make_wrapper_subclass(
            cls,
            held.master.size(),
            strides=held.master.stride(),
            dtype=held.master.dtype,
            device=held.low.device,
        )
        weight._held, weight._seen = held, (0, held.writes)
        return weight

    @property
    def master(self) -> Tensor:
        """The plain parameter, float32, in the host's memory."""
        return self._held.master

    @property
    def low(self) -> Tensor:
        """The values in the low dtype, on the device."""
        return self._held.low

    def refresh(self) -> None:
        """Round the values in the low dtype from the float32 ones again."""
        self._held.refresh()

    def _current(self) -> Tensor:
        """The values in the low dtype, once what was written elsewhere than by this class's operators is in them."""
        held = self._held
        version = _version(self)
        # an operator that writes counts in both; a write to a view of this, in the version alone
        through_view = version - self._seen[0] > held.writes - self._seen[1]
        if through_view and held.master.device != held.low.device:
            raise RuntimeError(
                f"a weight {tuple(self.shape)} that is held in {self.low.dtype} was written to through a view, which "
                f"on {self.low.device} is one of a copy: what was written is lost; write to the weight itself, or load "
                "it by load_state_dict"
            )
        if through_view or held.seen != _version(held.master):
            held.refresh()
        self._seen = (version, held.writes)
        return held.low.detach()

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        first = args[0] if args else None
        if isinstance(first, HeldWeight):
            if func is torch.ops.aten.detach.default:
                return cls._of(first._held)
            if func is _CAST and _is_plain_cast(first, kwargs):
                return first._current()

        whole: dict[_Held, Tensor] = {}
        of: dict[int, HeldWeight] = {}

        def plain(value: Any) -> Any:
            if not isinstance(value, HeldWeight):
                return value
            held = value._held
            if held not in whole:
                whole[held] = held.master.detach().to(held.low.device)
            of[id(whole[held])] = value
            return whole[held]

        written = list(_written(func, args, kwargs))
        result = func(*tree_map(plain, args), **tree_map(plain, kwargs))
        for held in {weight._held for weight in written}:
            if held.master.device != whole[held].device:
                held.master.detach().copy_(whole[held])
            held.low.copy_(whole[held])
            held.writes += 1
        return tree_map(lambda value: of.get(id(value), value), result)

    def __tensor_flatten__(self) -> tuple[list[str], Any]:
        """The names of what it is made of, for ``torch.compile``."""
        return ["master", "low"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], context: Any, size: Any, stride: Any) -> "HeldWeight":
        """Made again of these, for ``torch.compile``."""
        return HeldWeight(inner["master"], inner["low"])

    def __deepcopy__(self, memo: dict[int, Any]) -> "HeldWeight":
        if id(self) not in memo:
            with torch.no_grad():
                master = nn.Parameter(self.master.detach().clone(), requires_grad=False)
                memo[id(self)] = _rebuilt(master, self.low.clone(), self.requires_grad)
        copied: HeldWeight = memo[id(self)]
        return copied

    def __reduce_ex__(self, protocol: Any) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return _rebuilt, (self.master, self.low, self.requires_grad)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"HeldWeight({tuple(self.shape)}, held in {self.low.dtype} on {self.low.device})"


def held(parameter: nn.Parameter, dtype: torch.dtype) -> HeldWeight:
    """Hold a frozen parameter in another dtype where it is, and as it is in the host's memory.

    Args:
        parameter: Float32. It is kept, and moves to the host's memory.
        dtype: The other dtype.
    """
    with torch.no_grad():
        low = parameter.detach().to(dtype)
        return HeldWeight(parameter if parameter.is_meta else _moved(parameter, torch.device("cpu")), low)


def unheld(weight: HeldWeight) -> nn.Parameter:
    """The plain parameter that was held, on the device where it acted."""
    master = weight.master
    assert isinstance(master, nn.Parameter)
    return _moved(master, weight.device).requires_grad_(weight.requires_grad)  # type: ignore[return-value]


def _moved(parameter: nn.Parameter, device: torch.device) -> nn.Parameter:
    """The same parameter on another device; where torch cannot move it in place, as to some accelerators, a new one."""
    if parameter.device == device:
        return parameter
    data = parameter.data.to(device)
    if not torch._has_compatible_shallow_copy_type(parameter, data):
        return nn.Parameter(data, requires_grad=parameter.requires_grad)
    parameter.data = data
    return parameter


def _rebuilt(master: nn.Parameter, low: Tensor, requires_grad: bool) -> HeldWeight:
    weight = HeldWeight(master, low)
    weight.requires_grad_(requires_grad)
    return weight


def _version(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def _is_plain_cast(weight: HeldWeight, kwargs: dict[str, Any]) -> bool:
    return (
        kwargs.get("dtype") == weight.low.dtype
        and kwargs.get("device") in (None, weight.device)
        and all(kwargs.get(name) in values for name, values in _PLAIN.items())
    )


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[HeldWeight]:
    """The held weights among what an operator writes to."""
    if not func._schema.is_mutable:
        return
    for position, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            value = args[position] if position < len(args) else kwargs.get(argument.name)
            yield from (leaf for leaf in tree_leaves(value) if isinstance(leaf, HeldWeight))
