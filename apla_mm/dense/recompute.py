"""A head's convolutions kept, and all that is cheap between them done again in backward.

Normalisation, activation, upsampling and concatenation keep their inputs and outputs for backward, which are larger
than the convolutions' own outputs: a convolution behind an upsampling of two keeps four times what the one before it
has made. Here the outputs of convolutions and matrix products are kept alone, and the rest is computed again from them.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

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

    Outputs and gradients are equal to the plain call's to the bit, dropout included, and running statistics of norms
    move once.

    Args:
        function: What to call.
        *inputs: Its arguments. Tensors that need a gradient must be among them, or parameters of ``part``.
        part: Whose norms the function uses.

    Returns:
        What the function gives.
    """
    norms = [module for module in part.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    result: T = checkpoint(function, *inputs, use_reentrant=False, context_fn=partial(_contexts, norms))
    return result


@contextmanager
def last_layer() -> Iterator[None]:
    """Within it nothing is kept: of a last layer backward needs the input, not the output."""
    token = _LAST.set(True)
    try:
        yield
    finally:
        _LAST.reset(token)


def _contexts(norms: Sequence[_BatchNorm]) -> tuple[Any, Any]:
    forward, again = create_selective_checkpoint_contexts(_policy)
    return forward, _Again(again, norms)


def _policy(context: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    if op in _KEPT and not _LAST.get():
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


class _Again:
    """While it is computed again, running statistics stand still."""

    def __init__(self, context: Any, norms: Sequence[_BatchNorm]) -> None:
        self._context, self._norms, self._stack = context, norms, ExitStack()

    def __enter__(self) -> None:
        for norm in self._norms:
            self._stack.callback(setattr, norm, "momentum", norm.momentum)
            self._stack.callback(setattr, norm, "num_batches_tracked", norm.num_batches_tracked)
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        self._stack.enter_context(self._context)

    def __exit__(self, *error: Any) -> Any:
        return self._stack.__exit__(*error)
