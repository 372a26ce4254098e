"""Sums over the pixels of resized logits, without the resized logits.

Losses that are functions of such sums (focal, binary cross-entropy, Dice, Tversky) are exact by it: the function of the
sums is ordinary code, and the sums are computed strip by strip of rows, forward and backward.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .strips import Rows, add_strip_gradient, resize_strip, strip_heights


def strip_sums(
    of: Callable[..., Tensor],
    logits: Tensor,
    maps: Sequence[Tensor],
    *,
    align_corners: bool = False,
    budget: int | None = None,
) -> Tensor:
    """Sum ``of(resized logits, *maps)`` over strips of rows: equal to one call if ``of`` sums over pixels.

    Args:
        of: Gets a strip of the logits (B, C, k, W), resized bilinearly, and the same rows (B, k, W) of each map, and
            gives a tensor of sums over the strip's pixels, of the same shape for each strip. It is called once more in
            backward, and must not draw random numbers.
        logits: (B, C, h, w), any floating dtype; half precision is computed in float32.
        maps: At least one, each (B, H, W), such as the label map; its size is that of the resized logits.
        align_corners: As of ``F.interpolate``.
        budget: Bytes of a strip; None for what suits the device.

    Returns:
        The sums, differentiable in the logits.

    Raises:
        ValueError: A map requires a gradient.
    """
    if torch.is_grad_enabled() and any(one.requires_grad for one in maps):
        raise ValueError("one of maps requires a gradient, and there is one of the logits alone: detach it")
    with torch.autocast(logits.device.type, enabled=False):
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        result: Tensor = _Function.apply(logits, of, align_corners, budget, *maps)
    return result


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, of: Callable[..., Tensor], align_corners: bool, budget: int | None, *maps: Tensor
    ) -> Tensor:
        ctx.save_for_backward(logits, *maps)
        ctx.settings = of, align_corners, budget
        rows, strips = _strips(logits, maps[0], align_corners, budget)
        total: Tensor | None = None
        for start, end in strips:
            strip = resize_strip(logits, rows, start, end, maps[0].shape[2], align_corners)
            sums = of(strip, *(one[:, start:end] for one in maps))
            total = sums if total is None else total + sums
        assert total is not None
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        logits, *maps = ctx.saved_tensors
        of, align_corners, budget = ctx.settings
        gradient = torch.zeros_like(logits)
        rows, strips = _strips(logits, maps[0], align_corners, budget)
        with torch.autocast(logits.device.type, enabled=False):
            for start, end in strips:
                strip = resize_strip(logits, rows, start, end, maps[0].shape[2], align_corners)
                with torch.enable_grad():
                    strip = strip.detach().requires_grad_()
                    sums = of(strip, *(one[:, start:end] for one in maps))
                (of_strip,) = torch.autograd.grad(sums, strip, grad)
                add_strip_gradient(gradient, of_strip, rows, start, end, align_corners)
        return gradient, None, None, None, *(None for _ in maps)


def _strips(logits: Tensor, label: Tensor, align_corners: bool, budget: int | None) -> tuple[Rows, Any]:
    batch, classes, height, _ = logits.shape
    large, width = label.shape[1:]
    row_bytes = batch * classes * width * logits.element_size()
    rows = Rows.of(height, large, align_corners, logits)
    return rows, strip_heights(large, row_bytes, logits.device, budget)
