"""Mixed precision where mmengine's own wrapper does not go."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from torch import Tensor, nn

from ...method.wrappers import unwrapped


class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass, or that of some parts of the model, under bfloat16 autocast, on any device.

    bfloat16 has float32's range, so no loss is scaled. mmengine's ``AmpOptimWrapper`` refuses CPUs, and those with
    matrix units gain several times in speed.

    Detectors want ``parts=['backbone', 'neck']``: mmdet makes anchors and boxes in the dtype of the maps, and bfloat16
    rounds coordinates beyond 256 pixels to multiples of 2, 4 and 8; mmcv's operators do not take it at all.

    Args:
        parts: Children of the model that run under autocast, giving float32; None for the whole model.
        kwargs: Arguments of mmengine's ``OptimWrapper``.
    """

    def __init__(self, *, parts: Sequence[str] | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = parts

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the forward, within what the plain wrapper does."""
        with super().optim_context(model), ExitStack() as stack:
            autocast = torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16)
            if self.parts is None:
                stack.enter_context(autocast)
            for name in self.parts or ():
                if (part := getattr(unwrapped(model), name, None)) is not None:
                    stack.enter_context(_forward_under(autocast, part))
            yield


def _in_float32(one: Any) -> Any:
    """A map in float32; anything else, such as blocks that are still to be run, as it is."""
    return one.float() if isinstance(one, Tensor) else one


@contextmanager
def _forward_under(autocast: torch.autocast, part: nn.Module) -> Iterator[None]:
    forward = part.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with autocast:
            maps = forward(*args, **kwargs)
        return _in_float32(maps) if isinstance(maps, Tensor) else tuple(map(_in_float32, maps))

    part.forward = wrapped
    try:
        yield
    finally:
        del part.forward
