"""DETRs of mmdet's, DINO among them, as one module."""

import torch
from mmdet.models.dense_heads import DeformableDETRHead, DETRHead
from mmdet.models.detectors.base_detr import DetectionTransformer
from mmdet.structures import DetDataSample
from mmdet.structures.bbox import bbox_cxcywh_to_xyxy
from torch import Tensor, nn

from .boxes import scaled
from .images import PrepareImages


class ExportedDETR(nn.Module):
    """A DETR of mmdet's with what testing does before and behind it, for one image at a time.

    Deformable attention samples by ONNX's GridSample: mmcv computes it in torch alone on the CPU.

    Args:
        model: The detector, plain, in evaluation.
        prepare: What is done to images.

    Raises:
        ValueError: Its head predicts in another way than mmdet's DETR, or images are padded.
    """

    batch = 1  #: the only size of a batch
    outputs = ("boxes", "scores", "labels")

    def __init__(self, model: DetectionTransformer, prepare: PrepareImages) -> None:
        super().__init__()
        head = type(model.bbox_head)
        known = (DETRHead.predict_by_feat, DeformableDETRHead.predict_by_feat)
        single = getattr(head, "_predict_by_feat_single", None)
        if getattr(head, "predict_by_feat", None) not in known or single is not DETRHead._predict_by_feat_single:
            raise ValueError(
                f"{head.__name__} of {type(model).__name__} has its own predict_by_feat, which export would pass over: "
                "export takes heads that predict as mmdet's DETRHead and DeformableDETRHead do"
            )
        if prepare.divisor > 1:
            raise ValueError(
                f"{type(model).__name__} masks what is padded, which exporters leave out: set "
                "model.data_preprocessor.pad_size_divisor=1"
            )
        self.model, self.prepare = model, prepare
        self.count = int(model.test_cfg.get("max_per_img", model.num_queries))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Predict.

        Args:
            images: uint8 (1, 3, H, W), red first.

        Returns:
            Boxes float32 (1, N, 4) as x1, y1, x2, y2 in pixels, scores float32 (1, N) and labels int32 (1, N), the
            best first.
        """
        prepared = self.prepare(images)
        size = tuple(prepared.size)
        sample = DetDataSample(metainfo=dict(batch_input_shape=size, img_shape=size))
        head = self.model.bbox_head
        logits, boxes = head(**self.model.forward_transformer(self.model.extract_feat(prepared.images), [sample]))
        scores, labels, boxes = self._best(logits[-1, 0], boxes[-1, 0])
        height, width = (torch.as_tensor(side).to(boxes) for side in size)
        ends = torch.stack([width, height, width, height])
        boxes = torch.minimum((bbox_cxcywh_to_xyxy(boxes) * ends).clamp(min=0), ends)
        boxes = scaled(boxes, (images.shape[-2], images.shape[-1]), prepared.size)
        return boxes[None], scores[None], labels.int()[None]

    def _best(self, logits: Tensor, boxes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Scores, labels and boxes of the best, of logits (Q, classes) and boxes (Q, 4)."""
        if not self.model.bbox_head.loss_cls.use_sigmoid:
            scores, labels = logits.softmax(-1)[:, :-1].max(-1)
            scores, best = scores.topk(self.count)
            return scores, labels[best], boxes[best]
        classes = self.model.bbox_head.num_classes
        scores, best = logits.sigmoid().flatten().topk(self.count)
        return scores, best % classes, boxes[torch.div(best, classes, rounding_mode="floor")]
