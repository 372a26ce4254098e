"""Parts of exported models equal what they are in place of."""

import pytest
import torch
from helpers.optional import needs
from torch import nn

from apla_mm.export.modules.boxes import best_boxes, boxes_of_masks
from apla_mm.export.modules.panoptic import panoptic_map
from apla_mm.export.modules.ready import AdaptivePool
from apla_mm.export.modules.windows import Places, mean_of_windows, take_windows


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (6, 6)])
def test_adaptive_pooling(size: tuple[int, int]) -> None:
    x = torch.randn(2, 3, 7, 11, dtype=torch.float64)
    torch.testing.assert_close(AdaptivePool(size)(x), nn.AdaptiveAvgPool2d(size)(x))


@pytest.mark.parametrize(("side", "crop", "stride"), [(64, 32, 21), (65, 32, 32), (20, 32, 21), (33, 32, 8)])
def test_windows_have_the_places_and_the_mean_of_mmseg(side: int, crop: int, stride: int) -> None:
    image = torch.randn(2, 3, side, 40, dtype=torch.float64)
    rows, columns = Places(side, crop, stride, image.device), Places(40, 32, 16, image.device)
    windows = take_windows(image, rows, columns)
    windows = windows * torch.arange(1, len(windows) + 1)[:, None, None, None]  # each has values of its own
    total, count = torch.zeros_like(image), torch.zeros(side, 40)
    for b in range(2):
        for i in range(rows.count):
            for j in range(columns.count):
                top, left = min(i * stride, max(side - crop, 0)), min(j * 16, 8)
                place = (slice(top, top + min(crop, side)), slice(left, left + 32))
                total[b, :, place[0], place[1]] += windows[(b * rows.count + i) * columns.count + j]
                count[place] += b == 0
    torch.testing.assert_close(mean_of_windows(windows, 2, rows, columns), total / count)


def test_boxes_of_masks_are_mmdets() -> None:
    masks = torch.rand(5, 9, 12) > 0.97
    masks[0] = False
    expected = needs("mmdet.structures.mask").mask2bbox(masks)
    assert torch.equal(boxes_of_masks(masks), expected)


def test_nms_within_groups_is_mmcvs() -> None:
    ops = needs("mmcv.ops")
    corner = torch.rand(60, 2) * 20
    boxes, scores = torch.cat([corner, corner + torch.rand(60, 2) * 20], 1), torch.rand(60)
    groups, usable = torch.arange(60) % 3, scores > 0.2
    _, kept = ops.batched_nms(boxes[usable], scores[usable], groups[usable], dict(type="nms", iou_threshold=0.3))
    best, there = best_boxes(boxes, scores, groups, usable, 0.3, 50, 40)
    assert torch.equal(best[there], usable.nonzero()[:, 0][kept])


@pytest.mark.parametrize("low", [False, True])
def test_panoptic_maps_are_mmdets(low: bool) -> None:
    cfg = dict(panoptic_on=True, object_mask_thr=0.5, iou_thr=0.2, filter_low_score=low)
    fusion = needs("mmdet.models.seg_heads.panoptic_fusion_heads").MaskFormerFusionHead(3, 2, test_cfg=cfg)
    torch.manual_seed(0)
    logits = torch.randn(6, 12, 6) * 4
    masks = nn.functional.interpolate(torch.randn(6, 12, 3, 4) * 6, size=(30, 41), mode="bilinear")
    logits[5, :, 5] = 99  # an image without an object
    maps = panoptic_map(logits, masks, 3, cfg)
    expected = torch.cat([fusion.panoptic_postprocess(a, b).sem_seg for a, b in zip(logits, masks, strict=True)])
    assert maps.dtype == torch.int32 and torch.equal(maps, expected)
    found = expected.unique()
    assert (found >= 2000).any() and ((found >= 3) & (found < 5)).any() and (expected[5] == 5).all()
