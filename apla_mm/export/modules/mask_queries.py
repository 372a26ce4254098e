"""Mask2Former of mmdet's for instances or panoptic maps, EoMT among them, as one module."""

import torch
import torch.nn.functional as F
from mmdet.models.detectors import Mask2Former
from mmdet.models.seg_heads.panoptic_fusion_heads import MaskFormerFusionHead
from mmdet.structures import DetDataSample
from torch import Tensor, nn

from .boxes import boxes_of_masks
from .images import Prepared, PrepareImages
from .panoptic import panoptic_map


class ExportedMaskQueries(nn.Module):
    """A Mask2Former of mmdet's, EoMT among them, with what testing does before and behind it.

    It gives instances, or one panoptic map, as ``model.test_cfg`` says.

    Args:
        model: The detector, plain, in evaluation.
        prepare: What is done to images.

    Raises:
        ValueError: It gives something else, or both.
    """

    def __init__(self, model: Mask2Former, prepare: PrepareImages) -> None:
        super().__init__()
        fusion = model.panoptic_fusion_head
        if type(fusion) is not MaskFormerFusionHead:
            raise ValueError(f"{type(fusion).__name__} cannot be exported: MaskFormerFusionHead can")
        self.cfg = cfg = fusion.test_cfg
        self.panoptic = bool(cfg.get("panoptic_on", True))
        if cfg.get("semantic_on", False) or self.panoptic == bool(cfg.get("instance_on", False)):
            raise ValueError(
                "of a Mask2Former export takes instances or panoptic maps, one of them: set "
                "model.test_cfg.semantic_on=False, and one of model.test_cfg.panoptic_on and "
                "model.test_cfg.instance_on to True, the other to False"
            )
        self.outputs = ("segments",) if self.panoptic else ("boxes", "scores", "labels", "masks")
        self.model, self.prepare = model, prepare
        self.classes, self.things = fusion.num_classes, fusion.num_things_classes
        self.count = min(cfg.get("max_per_image", 100), model.panoptic_head.num_queries * self.classes)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Predict.

        Args:
            images: uint8 (B, 3, H, W), red first.

        Returns:
            Of instances: boxes float32 (B, N, 4) as x1, y1, x2, y2 in pixels, scores float32 (B, N), labels int32
            (B, N), the best first, and masks bool (B, N, H, W). Of classes that are no things, scores are 0 and labels
            -1. Of panoptic maps: segments int32 (B, H, W), see :func:`panoptic_map`.
        """
        prepared = self.prepare(images)
        logits, masks = self._predict(prepared, int(images.shape[0]))
        masks = masks[..., : prepared.size[0], : prepared.size[1]]
        masks = F.interpolate(masks, size=tuple(images.shape[-2:]), mode="bilinear", align_corners=False)
        if self.panoptic:
            return (panoptic_map(logits, masks, self.things, self.cfg),)
        return self._instances(logits, masks)

    def _predict(self, prepared: Prepared, count: int) -> tuple[Tensor, Tensor]:
        """Logits of classes (B, Q, classes + 1), and of masks at the padded size."""
        shape = tuple(prepared.padded)
        sample = DetDataSample(metainfo=dict(batch_input_shape=shape, img_shape=shape, pad_shape=shape))
        maps = self.model.extract_feat(prepared.images)
        logits, masks = self.model.panoptic_head(maps, [sample] * count)
        return logits[-1], F.interpolate(masks[-1], size=shape, mode="bilinear", align_corners=False)

    def _instances(self, logits: Tensor, masks: Tensor) -> tuple[Tensor, ...]:
        scores, best = logits.softmax(-1)[..., :-1].flatten(1).topk(self.count)
        labels = best % self.classes
        query = torch.div(best, self.classes, rounding_mode="floor")
        masks = masks.gather(1, query[..., None, None].expand(-1, -1, *masks.shape[-2:]))
        found = masks > 0
        weight = found.float()
        scores = scores * (masks.sigmoid() * weight).flatten(2).sum(2) / (weight.flatten(2).sum(2) + 1e-6)
        thing = labels < self.things
        scores = torch.where(thing, scores, torch.zeros_like(scores))
        labels = torch.where(thing, labels, torch.full_like(labels, -1))
        return boxes_of_masks(found), scores, labels.int(), found
