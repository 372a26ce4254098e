"""Panoptic maps of mask queries, as mmdet's ``MaskFormerFusionHead`` merges them, in tensors of fixed shapes."""

from collections.abc import Mapping
from typing import Any

import torch
from mmdet.structures import INSTANCE_OFFSET
from torch import Tensor


def panoptic_map(logits: Tensor, masks: Tensor, things: int, cfg: Mapping[str, Any]) -> Tensor:
    """Merge queries into one map.

    Each pixel goes to the query of the largest product of its class's and its mask's probability, among those whose
    class is surer than ``object_mask_thr``. A segment is left out if less than ``iou_thr`` of its mask is left to it;
    with ``filter_low_score`` it also loses pixels whose mask is below one half.

    Args:
        logits: Of classes, the last one no object, (B, Q, classes + 1).
        masks: Logits (B, Q, H, W).
        things: How many of the classes, the first ones, are things.
        cfg: mmdet's ``test_cfg``, with its defaults.

    Returns:
        int32 (B, H, W): class + 1000 * number of the object, which starts from 1; the class alone of stuff; the count
        of classes where nothing is.
    """
    classes = logits.shape[-1] - 1
    scores, labels = logits.softmax(-1).max(-1)
    sure = (labels != classes) & (scores > cfg.get("object_mask_thr", 0.8))
    masks = masks.sigmoid()
    weighted = torch.where(sure[..., None, None], scores[..., None, None] * masks, torch.full_like(masks, -1))
    query = weighted.argmax(1)
    inside = masks >= 0.5
    original = inside.sum((2, 3), dtype=torch.int32)
    ones = torch.ones_like(query, dtype=torch.int32).flatten(1)
    area = torch.zeros_like(original).scatter_add(1, query.flatten(1), ones)
    # a share of float64, as Python's of two ints
    share = area.double() / original.clamp(min=1)
    there = sure & (area > 0) & (original > 0) & (share >= cfg.get("iou_thr", 0.8))
    thing = there & (labels < things)
    number = thing.int().cumsum(1, dtype=torch.int32)
    value = torch.where(thing, labels.int() + number * INSTANCE_OFFSET, labels.int())
    value = torch.where(there, value, torch.full_like(value, classes))
    segments = value.gather(1, query.flatten(1)).view(query.shape)
    if cfg.get("filter_low_score", False):
        seen = inside.gather(1, query[:, None])[:, 0]
        segments = torch.where(seen, segments, torch.full_like(segments, classes))
    return segments
