"""What mmdet does to boxes, in shapes that do not depend on what is found."""

from typing import Any

import torch
from torch import Tensor

from .onnx_ops import nms


def check_nms(cfg: Any, where: str) -> float:
    """The threshold of a plain NMS.

    Raises:
        ValueError: It is another kind.
    """
    if cfg.get("type", "nms") != "nms" or set(cfg) - {"type", "iou_threshold", "class_agnostic", "split_thr"}:
        raise ValueError(
            f"{where} has nms={dict(cfg)}: export knows type='nms' with an iou_threshold (ONNX's NonMaxSuppression)"
        )
    if cfg.get("class_agnostic"):
        raise ValueError(f"{where} has an NMS across classes (class_agnostic=True), which export does not know")
    return float(cfg["iou_threshold"])


def best_boxes(
    boxes: Tensor, scores: Tensor, groups: Tensor, usable: Tensor, iou: float, count: int, extent: float
) -> tuple[Tensor, Tensor]:
    """NMS within groups.

    Args:
        boxes: (N, 4), not negative.
        scores: (N,).
        groups: int64 (N,); boxes of different groups leave each other alone.
        usable: bool (N,), which boxes take part.
        iou: Boxes that overlap a better one by more are left out.
        count: How many are given.
        extent: No box reaches further.

    Returns:
        Indices (count,) of the best, the best first, and which of them are there, bool (count,).
    """
    taking_part = usable.nonzero().squeeze(1)
    apart = boxes + groups[:, None].to(boxes) * (extent + 1)
    kept = taking_part[nms(apart[taking_part], scores[taking_part], iou)]
    there = torch.cat([torch.ones_like(kept), kept.new_zeros(count)])[:count]
    return torch.cat([kept, kept.new_zeros(count)])[:count], there.bool()


def boxes_of_masks(masks: Tensor) -> Tensor:
    """Tight boxes of masks.

    Args:
        masks: bool (..., H, W).

    Returns:
        float32 (..., 4): x1, y1, x2, y2; zeros for an empty mask.
    """
    sides = []
    for dim in (-2, -1):
        seen = masks.any(dim)
        length = seen.shape[-1]
        at = torch.arange(length, device=masks.device, dtype=torch.float32)
        first = torch.where(seen, at, torch.full_like(at, 1) * length).amin(-1)
        last = torch.where(seen, at + 1, torch.zeros_like(at)).amax(-1)
        sides.append((torch.where(last > 0, first, torch.zeros_like(first)), last))
    (x1, x2), (y1, y2) = sides
    return torch.stack([x1, y1, x2, y2], -1)


def scaled(boxes: Tensor, size: tuple[Any, Any], resized: tuple[Any, Any]) -> Tensor:
    """Boxes (..., 4) of a resized image, in pixels of the image before; both sizes are (height, width)."""
    ratios = [torch.as_tensor(new / old).to(boxes) for new, old in zip(resized, size, strict=True)]
    return boxes / torch.stack([ratios[1], ratios[0], ratios[1], ratios[0]])
