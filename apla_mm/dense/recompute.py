"""A head's convolutions kept, and all that is cheap between them done again in backward.

Normalisation, activation, upsampling and concatenation keep their inputs and outputs for backward, which are larger
than the convolutions' own outputs: a convolution behind an upsampling of two keeps four times what the one before it
has made. Here the outputs of convolutions and matrix products are kept alone, and the rest is computed again from them.

An output that is written to afterwards, as by an activation in place, is no longer what the operator gave, and is
computed again too.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.checkpoint import checkpoint

from ..method.memory.recompute import draws_random_numbers
from ..method.memory.still_buffers import StillBuffers

T = TypeVar("T")

_aten = torch.ops.aten
_KEPT = {
    _aten.convolution.default,
    _aten.mm.default,
    _aten.addmm.default,
    _aten.bmm.default,
    _aten.baddbmm.default,
    _aten._scaled_dot_product_flash_attention_for_cpu.default,
    _aten._scaled_dot_product_flash_attention.default,
    _aten._scaled_dot_product_efficient_attention.default,
}
_LAST: ContextVar[bool] = ContextVar("last", default=False)


def recomputed(function: Callable[..., T], *inputs: Any, part: nn.Module) -> T:
    """Call a function whose convolutions' outputs alone are kept for backward.

    Outputs and gradients are equal to the plain call's to the bit, dropout included, and running statistics move once.

    Args:
        function: What to call.
        *inputs: Its arguments. Tensors that need a gradient must be among them, or parameters of ``part``.
        part: Whose running statistics the function moves.

    Returns:
        What the function gives.
    """
    result: T = checkpoint(function, *inputs, use_reentrant=False, context_fn=partial(_contexts, part))
    return result


@contextmanager
def last_layer() -> Iterator[None]:
    """Within it nothing is kept: of a last layer backward needs the input, not the output."""
    token = _LAST.set(True)
    try:
        yield
    finally:
        _LAST.reset(token)


def _is_kept(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    return operator in _KEPT and not _LAST.get() and not draws_random_numbers(operator, args, kwargs)


def _contexts(part: nn.Module) -> tuple[Any, Any]:
    keeping = _Keeping()
    return keeping, StillBuffers(part, _Computing(keeping))


class _Kept:
    """What an operator gave; nothing once it was written to, or used."""

    def __init__(self, output: Any) -> None:
        self.output, self.versions = output, [tensor._version for tensor in _tensors(output)]

    def take(self) -> Any:
        output, self.output = self.output, None
        if [tensor._version for tensor in _tensors(output)] != self.versions:
            raise RuntimeError(
                "what a recomputed function gave was written to in place before backward, which needs it as it was: "
                "leave recompute=True out"
            )
        return output


class _Keeping(TorchDispatchMode):
    """Keeps outputs while the function is computed first."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: list[_Kept] = []
        self._of: dict[int, list[_Kept]] = {}  # by storage

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if _is_kept(func, args, kwargs):
            self._keep(result)
        elif func._schema.is_mutable:
            self._forget(_written(func, args, kwargs))
        return result

    def __exit__(self, *error: Any) -> None:
        self._of = {}
        super().__exit__(*error)

    def _keep(self, result: Any) -> None:
        kept = _Kept(tree_map(_detached, result))
        self.kept.append(kept)
        for tensor in _tensors(kept.output):
            self._of.setdefault(_storage(tensor), []).append(kept)

    def _forget(self, written: Iterator[Tensor]) -> None:
        for tensor in written:
            for kept in self._of.pop(_storage(tensor), ()):
                kept.output, kept.versions = None, []


class _Computing(TorchDispatchMode):
    """Gives what was kept while the function is computed again."""

    def __init__(self, keeping: _Keeping) -> None:
        super().__init__()
        self._keeping, self._next = keeping, iter(keeping.kept)

    def __enter__(self) -> Any:
        self._next = iter(self._keeping.kept)  # of a graph that is kept several times
        return super().__enter__()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kept = next(self._next) if _is_kept(func, args, kwargs) else None
        return func(*args, **kwargs) if kept is None or kept.output is None else kept.take()


def _detached(value: Any) -> Any:
    """A tensor without the history that it will get, which would hold the tensor itself; its version is shared."""
    if not isinstance(value, Tensor):
        return value
    # beneath autograd a view has a version of its own unless it is told otherwise, as torch's own contexts do
    with torch._C._SetExcludeDispatchKeyGuard(torch._C.DispatchKey.ADInplaceOrView, False):
        return value.detach()


def _tensors(output: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _written(operator: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Tensor]:
    """The tensors among what an operator writes to."""
    for position, argument in enumerate(operator._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield from _tensors(args[position] if position < len(args) else kwargs.get(argument.name))
