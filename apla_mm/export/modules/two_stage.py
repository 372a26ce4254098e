"""Faster and Mask R-CNN as one module, with RoIAlign and NMS as ONNX has them."""

from typing import Any

import torch
import torch.nn.functional as F
from mmdet.models.dense_heads import RPNHead
from mmdet.models.detectors import TwoStageDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.models.task_modules.coders import DeltaXYWHBBoxCoder
from mmdet.models.task_modules.coders.delta_xywh_bbox_coder import delta2bbox
from torch import Tensor, nn

from .boxes import best_boxes, check_nms, scaled
from .images import PrepareImages
from .onnx_ops import roi_align


class ExportedTwoStage(nn.Module):
    """A Faster R-CNN or Mask R-CNN of mmdet's with what testing does before and behind it, for one image at a time.

    Args:
        model: The detector, plain, in evaluation.
        prepare: What is done to images.

    Raises:
        ValueError: A part of the detector is of a class that cannot be exported.
    """

    batch = 1  #: the only size of a batch
    formats = ("onnx",)  #: mmcv's RoIAlign and NMS are in no file of torch's

    def __init__(self, model: TwoStageDetector, prepare: PrepareImages) -> None:
        super().__init__()
        _check_parts(model)
        self.model, self.prepare = model, prepare
        self.rpn_cfg, self.cfg = model.test_cfg.rpn, model.test_cfg.rcnn
        self.rpn_iou = check_nms(self.rpn_cfg.nms, "test_cfg.rpn")
        self.iou = check_nms(self.cfg.nms, "test_cfg.rcnn")
        self.outputs = ("boxes", "scores", "labels", *(["masks"] if model.roi_head.with_mask else []))

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            images: uint8 (1, 3, H, W), red first.

        Returns:
            Boxes float32 (1, N, 4) as x1, y1, x2, y2 in pixels, scores float32 (1, N), labels int32 (1, N), the best
            first, and, of Mask R-CNN, masks bool (1, N, H, W). Rows for which nothing was found have a score of 0 and
            the label -1.
        """
        size: tuple[Any, Any] = (images.shape[-2], images.shape[-1])
        prepared = self.prepare(images)
        maps = self.model.extract_feat(prepared.images)
        proposals, there = self._proposals(maps, prepared.size)
        boxes, scores, labels = self._boxes(maps, proposals, there, prepared.size, size)
        results = [boxes, scores, labels.int()]
        if self.model.roi_head.with_mask:
            results[0] = scaled(boxes, size, prepared.size)
            results.append(self._masks(maps, boxes, labels, results[0], size))
        results[0] = torch.where((labels >= 0)[:, None], results[0], torch.zeros_like(results[0]))
        return tuple(result[None] for result in results)

    def _proposals(self, maps: tuple[Tensor, ...], size: tuple[Any, Any]) -> tuple[Tensor, Tensor]:
        head, cfg = self.model.rpn_head, self.rpn_cfg
        shapes = [one.shape[-2:] for one in maps]
        anchors = head.prior_generator.grid_priors(shapes, dtype=maps[0].dtype, device=maps[0].device)
        boxes, scores, levels = [], [], []
        for i, (score, delta, anchor) in enumerate(zip(*head(maps), anchors, strict=True)):
            score = score[0].permute(1, 2, 0).reshape(-1, head.cls_out_channels)
            score = (score.sigmoid() if head.use_sigmoid_cls else score.softmax(-1)[:, :-1]).squeeze(1)
            delta = delta[0].permute(1, 2, 0).reshape(-1, 4)
            if 0 < cfg.nms_pre < int(score.shape[0]):
                score, best = score.topk(cfg.nms_pre)
                delta, anchor = delta[best], anchor[best]
            boxes.append(_decoded(head, anchor, delta, size))
            scores.append(score)
            levels.append(torch.full_like(score, i, dtype=torch.long))
        box, score, level = torch.cat(boxes), torch.cat(scores), torch.cat(levels)
        usable = (box[:, 2:] - box[:, :2] > cfg.get("min_bbox_size", -1)).all(1)
        best, there = best_boxes(box, score, level, usable, self.rpn_iou, cfg.max_per_img, max(map(int, size)))
        return box[best], there

    def _boxes(
        self, maps: tuple[Tensor, ...], proposals: Tensor, there: Tensor, resized: tuple[Any, Any], size: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Boxes, of the resized image where masks are yet to come, scores and labels."""
        head = self.model.roi_head.bbox_head
        logits, delta = head(_regions(self.model.roi_head.bbox_roi_extractor, maps, proposals))
        scores = logits.softmax(-1)[:, :-1]
        classes = scores.shape[1]
        shared = head.reg_class_agnostic
        start = proposals if shared else proposals.repeat_interleave(classes, 0)
        boxes = _decoded(head, start, delta.reshape(-1, 4), resized)
        extent = max(map(int, resized))
        if not self.model.roi_head.with_mask:
            boxes, extent = scaled(boxes, size, resized), max(map(int, size))
        if shared:
            boxes = boxes[:, None].expand(-1, classes, 4).reshape(-1, 4)
        usable = ((scores > self.cfg.score_thr) & there[:, None]).flatten()
        labels = torch.arange(classes, device=scores.device).repeat(scores.shape[0])
        best, found = best_boxes(boxes, scores.flatten(), labels, usable, self.iou, self.cfg.max_per_img, extent)
        scores = torch.where(found, scores.flatten()[best], torch.zeros_like(best, dtype=scores.dtype))
        labels = torch.where(found, labels[best], torch.full_like(best, -1))
        return boxes[best], scores, labels

    def _masks(self, maps: tuple[Tensor, ...], boxes: Tensor, labels: Tensor, final: Tensor, size: Any) -> Tensor:
        roi_head = self.model.roi_head
        logits = roi_head.mask_head(_regions(roi_head.mask_roi_extractor, maps, boxes))
        if not roi_head.mask_head.class_agnostic:
            chosen = labels.clamp(min=0)[:, None, None, None].expand(-1, 1, *logits.shape[-2:])
            logits = logits.gather(1, chosen)
        axes = []
        for side, first, last in ((size[1], final[:, 0], final[:, 2]), (size[0], final[:, 1], final[:, 3])):
            at = torch.arange(side, device=boxes.device, dtype=torch.float32) + 0.5
            place = (at - first[:, None]) / (last - first)[:, None] * 2 - 1
            axes.append(torch.where(place.isinf(), torch.zeros_like(place), place))
        columns, rows = axes
        grid = torch.stack(
            [columns[:, None].expand(-1, rows.shape[1], -1), rows[:, :, None].expand(-1, -1, columns.shape[1])], 3
        )
        masks = F.grid_sample(logits.sigmoid(), grid, align_corners=False)[:, 0]
        return (masks >= self.cfg.mask_thr_binary) & (labels >= 0)[:, None, None]


def _decoded(head: Any, boxes: Tensor, deltas: Tensor, size: tuple[Any, Any]) -> Tensor:
    """Boxes (N, 4) moved by deltas (N, 4), as the head's coder does outside of an export."""
    coder = head.bbox_coder
    moved: Tensor = delta2bbox(
        boxes,
        deltas,
        coder.means,
        coder.stds,
        size,
        clip_border=coder.clip_border,
        add_ctr_clamp=coder.add_ctr_clamp,
        ctr_clamp=coder.ctr_clamp,
    )
    return moved


def _regions(extractor: SingleRoIExtractor, maps: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
    """Values (N, C, side, side) of boxes (N, 4), each of the map of its size."""
    regions = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], 1)
    maps = maps[: extractor.num_inputs]
    levels = extractor.map_roi_levels(regions, len(maps))
    size = extractor.roi_layers[0].output_size
    result = boxes.new_zeros(boxes.shape[0], maps[0].shape[1], *size)
    for i, (layer, one) in enumerate(zip(extractor.roi_layers, maps, strict=True)):
        chosen = (levels == i).nonzero().squeeze(1)
        result = result.index_put((chosen,), roi_align(one, regions[chosen], layer))
    return result


def _check_parts(model: TwoStageDetector) -> None:
    roi_head = model.roi_head
    allowed: list[tuple[Any, type]] = [
        (model.rpn_head, RPNHead),
        (model.rpn_head.bbox_coder, DeltaXYWHBBoxCoder),
        (roi_head, StandardRoIHead),
        (roi_head.bbox_head.bbox_coder, DeltaXYWHBBoxCoder),
        (roi_head.bbox_roi_extractor, SingleRoIExtractor),
    ]
    if roi_head.with_mask:
        allowed += [(roi_head.mask_head, FCNMaskHead), (roi_head.mask_roi_extractor, SingleRoIExtractor)]
    for part, cls in allowed:
        if type(part) is not cls:
            raise ValueError(
                f"{type(part).__name__} in {type(model).__name__} cannot be exported, {cls.__name__} can: take a "
                "detector of these parts, or write a module like apla_mm.export.modules.two_stage.ExportedTwoStage"
            )
    if roi_head.with_shared_head or roi_head.bbox_head.custom_cls_channels:
        raise ValueError(f"{type(model).__name__} with a shared_head, or scores of the loss's own, cannot be exported")
    if roi_head.with_mask and model.test_cfg.rcnn.mask_thr_binary < 0:
        raise ValueError("test_cfg.rcnn.mask_thr_binary < 0 gives no masks: set 0.5")
    layers = [
        *roi_head.bbox_roi_extractor.roi_layers,
        *(roi_head.mask_roi_extractor.roi_layers if roi_head.with_mask else []),
    ]
    for layer in layers:
        if type(layer).__name__ != "RoIAlign" or layer.pool_mode != "avg":
            raise ValueError(f"{type(layer).__name__} cannot be exported: RoIAlign with pool_mode='avg' can")
