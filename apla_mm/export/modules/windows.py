"""mmseg's sliding windows as tensors: their number may depend on the image's size."""

from typing import Any

import torch
from torch import Tensor

from .sizes import larger, smaller


class Places:
    """Where windows lie along one side of an image: those of ``EncoderDecoder.slide_inference``.

    Args:
        side: Of the image; an int, or a tensor while a model is traced.
        crop: Of a window.
        stride: From one window to the next.
        device: Of the tensors.

    Attributes:
        count: How many there are.
        crop: Their length.
        pixels: int64 (count, crop), the pixels that each takes.
    """

    def __init__(self, side: Any, crop: int, stride: int, device: torch.device) -> None:
        self.side = side
        self.crop = smaller(side, crop)
        self.count = larger(side - crop + stride - 1, 0) // stride + 1
        self.stride, self.overlap = stride, -(-crop // stride)
        starts = (torch.arange(self.count, device=device) * stride).clamp(max=side - self.crop)
        self.pixels = starts[:, None] + torch.arange(self.crop, device=device)

    def added(self, x: Tensor, dim: int) -> tuple[Tensor, Tensor]:
        """Sum the windows.

        Each pixel gathers from the windows that it may lie in: exporters add up wrongly where windows scatter to it.

        Args:
            x: The windows' pixels, count * crop of them along ``dim``.
            dim: That dimension.

        Returns:
            ``x`` with ``side`` values along ``dim``, and the number of windows that each pixel lies in, (side,).
        """
        pixels = torch.arange(self.side, device=x.device)
        last = self.count - 1
        shape = [-1 if i == dim else 1 for i in range(x.ndim)]
        total, times = None, None
        for back in range(self.overlap + 1):
            if back == self.overlap:  # the last window, which ends where the image does
                window, within = torch.zeros_like(pixels) + last, pixels - (self.side - self.crop)
                there = within >= 0
            else:
                window = torch.div(pixels, self.stride, rounding_mode="floor") - back
                within = pixels - window * self.stride
                there = (window >= 0) & (window < last) & (within < self.crop)
            index = torch.where(there, window * self.crop + within, torch.zeros_like(pixels))
            weight = there.to(x.dtype)
            part = x.index_select(dim, index) * weight.view(shape)
            total = part if total is None else total + part
            times = weight if times is None else times + weight
        assert total is not None and times is not None
        return total, times


def take_windows(images: Tensor, rows: Places, columns: Places) -> Tensor:
    """(B, C, H, W) to (B * rows.count * columns.count, C, crop height, crop width)."""
    batch, channels = images.shape[:2]
    x = images.index_select(2, rows.pixels.flatten()).index_select(3, columns.pixels.flatten())
    x = x.reshape(batch, channels, rows.count, rows.crop, columns.count, columns.crop)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, rows.crop, columns.crop)


def mean_of_windows(logits: Tensor, batch: Any, rows: Places, columns: Places) -> Tensor:
    """The windows' mean at each pixel, (B, C, H, W), of logits as :func:`take_windows` orders them."""
    x = logits.reshape(batch, rows.count, columns.count, logits.shape[1], rows.crop, columns.crop)
    x = x.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)
    total, times = rows.added(x, 2)
    total, times_across = columns.added(total, 3)
    return total / (times[:, None] * times_across)
