"""Masks sampled at points, without a copy of them in floating point."""

import torch
from torch import Tensor


def sample_masks(masks: Tensor, points: Tensor) -> Tensor:
    """What bilinear ``grid_sample`` of ``masks.float()`` gives, with zeros outside.

    Args:
        masks: (M, H, W) of uint8 or bool.
        points: x and y as shares of width and height: (M, P, 2), or (1, P, 2) for the same points in all masks.

    Returns:
        (M, P), in the dtype of the points.
    """
    height, width = masks.shape[1:]
    which = torch.arange(len(masks), device=masks.device)[:, None]
    x, y = points[..., 0] * width - 0.5, points[..., 1] * height - 0.5
    left, top = x.floor(), y.floor()
    total = points.new_zeros(len(masks), points.shape[1])
    for column, part_x in ((left, left + 1 - x), (left + 1, x - left)):
        for row, part_y in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            rows, columns = row.clamp(0, height - 1).long(), column.clamp(0, width - 1).long()
            total += part_x * part_y * inside * masks[which, rows, columns]
    return total
