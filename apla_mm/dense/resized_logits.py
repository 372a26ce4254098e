"""Logits that are resized, cropped, flipped and resized again, of which any few rows can be had without the others.

Two bilinear resizes are not one, so each is done as it stands. But they are separable: rows are made at the small
width, from the two rows each that they need, and widened afterwards. The same holds for a mean over sliding windows,
which is made from each window's small logits, row by row.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .strips import Rows, resize_columns, strip_heights


class Resize(NamedTuple):
    """To a size (H, W), bilinearly."""

    size: tuple[int, int]
    align_corners: bool = False


class Crop(NamedTuple):
    """So many pixels away from each side, in the order of mmseg's ``padding_size``."""

    left: int = 0
    right: int = 0
    top: int = 0
    bottom: int = 0


class Flip(NamedTuple):
    """``'horizontal'`` or ``'vertical'``."""

    direction: str


Step = Resize | Crop | Flip


class ResizedLogits:
    """Logits and what is done to them, step by step.

    Args:
        logits: (B, C, h, w), any floating dtype, computed in float32 at least; or :class:`Windows`.
        steps: What is done to them, in this order.

    Attributes:
        shape: (B, C, H, W), of what the steps give.
        dtype: In which rows are computed.
        widest: The largest width that a row has on its way.

    Raises:
        ValueError: Logits of another shape or dtype, or a step that leaves no pixel, or an unknown direction.
    """

    shape: tuple[int, int, int, int]
    device: torch.device
    dtype: torch.dtype
    widest: int

    def __init__(self, logits: "Tensor | Windows", steps: Sequence[Step] = ()) -> None:
        self.logits: Tensor | Windows = logits
        self.steps = tuple(steps)
        if isinstance(logits, Tensor):
            if logits.dim() != 4 or not logits.is_floating_point():
                raise ValueError(
                    f"logits must be (B, C, h, w) of a floating dtype, not {logits.dtype} {tuple(logits.shape)}"
                )
            self.logits = logits.detach()
        self.device = logits.device
        self.dtype = torch.float32 if logits.dtype in (torch.float16, torch.bfloat16) else logits.dtype
        height, width = logits.shape[2:]
        self.widest = width if isinstance(logits, Tensor) else logits.widest
        self._heights = [height]
        self._rows: list[Rows | None] = []
        for step in self.steps:
            before, (height, width) = height, _size_behind(step, height, width)
            rows = None
            if isinstance(step, Resize) and height != before:
                # their dtype is that of the weights, as in torch's kernels; indices are needed by the host
                rows = Rows.of(before, height, step.align_corners, torch.empty(0, dtype=self.dtype))
            self.widest = max(self.widest, width)
            self._heights.append(height)
            self._rows.append(rows)
        batch, channels = logits.shape[:2]
        self.shape = (batch, channels, height, width)

    def image(self, index: int) -> "ResizedLogits":
        """The same of one image of the batch."""
        of = self.logits[index : index + 1] if isinstance(self.logits, Tensor) else self.logits.image(index)
        return ResizedLogits(of, self.steps)

    def behind(self, steps: Sequence[Step]) -> "ResizedLogits":
        """The same with further steps."""
        return ResizedLogits(self.logits, (*self.steps, *steps))

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of what the steps give.

        Args:
            index: (k,) int64 on the CPU, ascending.

        Returns:
            (B, C, k, W), new or a view of the logits.
        """
        strip = self._narrow_rows(len(self.steps), index)
        for step in self.steps:
            if isinstance(step, Resize):
                strip = resize_columns(strip, step.size[1], step.align_corners)
            elif isinstance(step, Crop):
                strip = strip[..., step.left : strip.shape[-1] - step.right]
            elif step.direction == "horizontal":
                strip = strip.flip(3)
        return strip

    def add_to(self, total: Tensor) -> None:
        """Add all rows to a tensor (B, C, H, W), in place, strip by strip."""
        for start, end, strip in strips_of(self):
            total[:, :, start:end] += strip

    def _narrow_rows(self, count: int, index: Tensor) -> Tensor:
        """Rows behind the first ``count`` steps, at the logits' own width."""
        if not count:
            if not isinstance(self.logits, Tensor):
                return self.logits.rows(index)
            first, last = int(index[0]), int(index[-1])
            if last - first + 1 == len(index):
                return self.logits[:, :, first : last + 1].to(self.dtype)
            return self.logits.index_select(2, index.to(self.device)).to(self.dtype)
        step, rows = self.steps[count - 1], self._rows[count - 1]
        if isinstance(step, Crop):
            return self._narrow_rows(count - 1, index + step.top)
        if isinstance(step, Flip) and step.direction == "vertical":
            return self._narrow_rows(count - 1, (self._heights[count] - 1 - index).flip(0)).flip(2)
        if rows is None:
            return self._narrow_rows(count - 1, index)
        needed, place = torch.stack([rows.above[index], rows.below[index]]).unique(return_inverse=True)
        before = self._narrow_rows(count - 1, needed)
        above, below = (before.index_select(2, one) for one in place.to(self.device))
        return torch.lerp(above, below, rows.weight[index, None].to(self.device))


class Windows:
    """The mean of overlapping windows, as sliding inference makes it, without the sum at full size.

    Args:
        parts: Each window's logits, at the window's size, and its first row and column.
        size: (H, W) of the image.

    Attributes:
        shape: (B, C, H, W).
        dtype: Of the windows.
        widest: The largest width that a row has on its way.

    Raises:
        ValueError: No window, or one that does not fit into the image, or pixels that no window covers.
    """

    shape: tuple[int, int, int, int]
    device: torch.device
    dtype: torch.dtype
    widest: int

    def __init__(self, parts: Sequence[tuple[ResizedLogits, int, int]], size: tuple[int, int]) -> None:
        if not parts:
            raise ValueError("no windows")
        self.parts = list(parts)
        height, width = size
        covered = torch.zeros(size, dtype=torch.bool)
        for part, top, left in parts:
            bottom, right = top + part.shape[2], left + part.shape[3]
            if min(top, left) < 0 or bottom > height or right > width:
                raise ValueError(f"a window of rows {top} to {bottom}, columns {left} to {right} is not within {size}")
            covered[top:bottom, left:right] = True
        if not covered.all():
            raise ValueError(f"the windows do not cover {size}")
        first = parts[0][0]
        self.shape = (first.shape[0], first.shape[1], height, width)
        self.device, self.dtype = first.device, first.dtype
        self.widest = max(width, *(part.widest for part, _, _ in parts))

    def image(self, index: int) -> "Windows":
        """The same of one image of the batch."""
        parts = [(part.image(index), top, left) for part, top, left in self.parts]
        return Windows(parts, (self.shape[2], self.shape[3]))

    def rows(self, index: Tensor) -> Tensor:
        """Some rows of the mean; arguments and result of :meth:`ResizedLogits.rows`."""
        batch, channels, _, width = self.shape
        total = torch.zeros(batch, channels, len(index), width, dtype=self.dtype, device=self.device)
        count = torch.zeros(len(index), width, dtype=self.dtype)
        for part, top, left in self.parts:
            height, right = part.shape[2], left + part.shape[3]
            start, end = torch.searchsorted(index, torch.tensor([top, top + height])).tolist()
            if start < end:
                total[:, :, start:end, left:right] += part.rows(index[start:end] - top)
                count[start:end, left:right] += 1
        return total.div_(count.to(self.device))


def _size_behind(step: Step, height: int, width: int) -> tuple[int, int]:
    if isinstance(step, Resize):
        height, width = step.size
    elif isinstance(step, Crop):
        if min(step) < 0:
            raise ValueError(f"{step} takes away less than nothing")
        height, width = height - step.top - step.bottom, width - step.left - step.right
    elif step.direction not in ("horizontal", "vertical"):
        raise ValueError(f"{step} must be 'horizontal' or 'vertical'")
    if height < 1 or width < 1:
        raise ValueError(f"{step} leaves nothing: ({height}, {width})")
    return height, width


def strips_of(logits: ResizedLogits, budget: int | None = None) -> Iterator[tuple[int, int, Tensor]]:
    """All rows, strip by strip.

    Args:
        logits: What gives (B, C, H, W).
        budget: Bytes of a strip; None for what suits the device.

    Yields:
        First row, the one behind the last, and the strip (B, C, k, W): new, or a view of the logits.
    """
    for start, end in strips_within(logits, budget):
        yield start, end, logits.rows(torch.arange(start, end))


def strips_within(logits: ResizedLogits, budget: int | None = None) -> Iterator[tuple[int, int]]:
    """First row, and the one behind the last, of each strip of :func:`strips_of`."""
    batch, channels, height, _ = logits.shape
    row_bytes = batch * channels * logits.widest * logits.dtype.itemsize
    return strip_heights(height, row_bytes, logits.device, budget)
