"""OpenCV's bilinear resizing of images of bytes, to the bit, in operators that every exporter has."""

from typing import Any

import torch
from torch import Tensor

_ONE = 2048  #: OpenCV's weights of pixels are whole numbers of 1 / 2048


def resize_bytes(images: Tensor, height: Any, width: Any) -> Tensor:
    """Resize as ``cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)`` does.

    Args:
        images: uint8 (B, C, H, W).
        height: Of the result; an int, or a tensor while a model is traced.
        width: The same.

    Returns:
        int32 (B, C, height, width), 0 to 255.
    """
    left, right, of_left, of_right = _neighbours(images.shape[-1], width, images.device)
    # no weight for what lies outside; of rows OpenCV repeats the outermost
    inside = (left >= 0) & (left < images.shape[-1] - 1)
    of_left, of_right = torch.where(inside, of_left, _ONE), torch.where(inside, of_right, 0)
    x = images.int()
    x = _at(x, 3, left) * of_left + _at(x, 3, right) * of_right
    x = torch.div(x, 16, rounding_mode="floor")
    top, bottom, of_top, of_bottom = _neighbours(images.shape[-2], height, images.device)
    upper = torch.div(_at(x, 2, top) * of_top[:, None], 65536, rounding_mode="floor")
    lower = torch.div(_at(x, 2, bottom) * of_bottom[:, None], 65536, rounding_mode="floor")
    return torch.div(upper + lower + 2, 4, rounding_mode="floor")


def _neighbours(side: Any, new: Any, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The two pixels before and behind each new one, which may lie outside, and their weights."""
    # of one dimension: tensors of none are scalars to exporters, and become float32
    ratio, divisor = (torch.as_tensor(one, dtype=torch.float64, device=device).reshape(1) for one in (side, new))
    ratio = ratio / divisor
    at = ((torch.arange(new, device=device, dtype=torch.float64) + 0.5) * ratio - 0.5).float()
    before = at.floor()
    part = at - before
    first = before.long()
    return first, first + 1, ((1 - part) * _ONE).round().int(), (part * _ONE).round().int()


def _at(x: Tensor, dim: int, places: Tensor) -> Tensor:
    return x.index_select(dim, places.clamp(0, x.shape[dim] - 1))
