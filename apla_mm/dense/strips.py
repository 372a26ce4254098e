"""Bilinear upsampling, strip of rows by strip of rows: what ``F.interpolate`` gives, and its transpose.

Bilinear resizing is separable. A strip is resized along its height by two rows of the small map each, which is little
work at the small width, and along its width by torch's own kernel, for which the strip keeps its height.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_CPU_BUDGET, _GPU_BUDGET = 2 * 2**20, 64 * 2**20  #: bytes of a strip: what caches hold; what keeps a GPU busy


@dataclass(frozen=True)
class Rows:
    """Of which two rows of a small map each row of the resized one is made.

    Attributes:
        above: (H,) int64, the first of them.
        below: (H,) int64, the second.
        weight: (H,) of the map's dtype, the second's share.
    """

    above: Tensor
    below: Tensor
    weight: Tensor

    @classmethod
    def of(cls, small: int, large: int, align_corners: bool, like: Tensor) -> "Rows":
        """For a map of ``small`` rows resized to ``large`` ones, as ``F.interpolate`` does it."""
        rows = torch.arange(large, device=like.device, dtype=like.dtype)
        if align_corners:
            place = rows * ((small - 1) / (large - 1) if large > 1 else 0.0)
        else:
            place = ((rows + 0.5) * (small / large) - 0.5).clamp_min(0)
        above = place.floor().clamp(max=small - 1)
        index = above.to(torch.int64)
        return cls(index, (index + 1).clamp_max(small - 1), place - above)


def strip_heights(height: int, row_bytes: int, device: torch.device, budget: int | None) -> Iterator[tuple[int, int]]:
    """Strips of rows, each within a budget of bytes, or one row, and of equal height but for the last.

    Args:
        height: Rows of the resized map.
        row_bytes: What one row needs, of all images and channels.
        device: Where it is computed.
        budget: Bytes; None for what suits the device.

    Returns:
        First row, and the one behind the last, of each strip.
    """
    budget = budget or (_CPU_BUDGET if device.type == "cpu" else _GPU_BUDGET)
    most = max(1, budget // max(1, row_bytes))  # no bytes: of an empty batch
    count = -(-height // most)
    rows = -(-height // count)
    for start in range(0, height, rows):
        yield start, min(start + rows, height)


def resize_strip(small: Tensor, rows: Rows, start: int, end: int, width: int, align_corners: bool) -> Tensor:
    """Rows ``start`` to ``end`` of a map (B, C, h, w) resized to ``width``: (B, C, end - start, width)."""
    above, below = (small.index_select(2, index[start:end]) for index in (rows.above, rows.below))
    return resize_columns(torch.lerp(above, below, rows.weight[start:end, None]), width, align_corners)


def resize_columns(strip: Tensor, width: int, align_corners: bool) -> Tensor:
    """A strip (B, C, k, w) resized along its width alone: (B, C, k, width)."""
    if width == strip.shape[-1]:
        return strip
    return torch.ops.aten.upsample_bilinear2d(strip, [strip.shape[2], width], align_corners, None, None)


def add_strip_gradient(gradient: Tensor, strip: Tensor, rows: Rows, start: int, end: int, align_corners: bool) -> None:
    """Add to a small map's gradient (B, C, h, w), in place, what a strip's gradient (B, C, end - start, W) gives."""
    strip = _gradient_of_columns(strip, gradient.shape[-1], align_corners)
    share = rows.weight[start:end, None]
    gradient.index_add_(2, rows.below[start:end], strip * share)
    gradient.index_add_(2, rows.above[start:end], strip * (1 - share))


def _gradient_of_columns(strip: Tensor, width: int, align_corners: bool) -> Tensor:
    """What the gradient of a strip (B, C, k, W) is before :func:`resize_columns`: (B, C, k, width)."""
    batch, channels, height, large = strip.shape
    if width == large:
        return strip
    # of a compiler the operator below cannot be given sizes that are symbols, and on a GPU it is an error where
    # algorithms shall be deterministic, as by mmengine's randomness=dict(deterministic=True)
    deterministic = strip.device.type != "cpu" and torch.are_deterministic_algorithms_enabled()
    if deterministic or torch.compiler.is_compiling():
        columns = Rows.of(width, large, align_corners, strip)
        gradient = strip.new_zeros(batch, channels, height, width)
        gradient = gradient.index_add(3, columns.below, strip * columns.weight)
        return gradient.index_add(3, columns.above, strip * (1 - columns.weight))
    shape = [batch, channels, height, width]
    return torch.ops.aten.upsample_bilinear2d_backward(strip, [height, large], shape, align_corners, None, None)
