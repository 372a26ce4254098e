"""mmdet's necks and heads, Mask2Former's in mmseg too, without copies that nobody needs: exact.

Label masks stay what they are, one byte a pixel, until they are sampled; attention writes out no N x N matrix; and, if
asked for, layers of transformers keep their inputs alone, and convolutions with norms the convolutions' outputs.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmcv.cnn.bricks.transformer import MultiheadAttention
from mmcv.ops import point_sample, roi_align
from mmdet.models.dense_heads import Mask2FormerHead, RPNHead
from mmdet.models.layers.transformer.detr_layers import DetrTransformerDecoderLayer, DetrTransformerEncoderLayer
from mmdet.models.roi_heads.bbox_heads import ConvFCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.models.utils import get_uncertain_point_coords_with_randomness
from mmdet.structures.mask import BitmapMasks
from mmdet.utils import reduce_mean
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ...dense.mask_points import sample_masks
from ...dense.recompute import recomputed
from ...method.attention.multihead import ProjectedMultiheadAttention, check_multihead
from ...method.class_change import Changed, change, change_back
from ..necks import SimpleFeaturePyramid

MASK_BYTES = 2**25  # of masks in floating point at once


class LeanMask2FormerHead(Changed):
    """Matches without a graph, and samples label masks from bytes."""

    def preprocess_gt(self: Any, *inputs: Any) -> Any:
        """As mmdet's, with masks of one byte a pixel."""
        return _in_bytes(super().preprocess_gt(*inputs))  # type: ignore[misc]

    def _seg_data_to_instance_data(self: Any, batch_data_samples: Sequence[Any]) -> tuple[list[Any], list[Any]]:
        """As mmseg's, with masks of one byte a pixel."""
        found, metas = [], []
        for sample in batch_data_samples:
            label = sample.gt_sem_seg.data
            classes = label.unique()
            classes = classes[classes != self.ignore_index]
            masks = torch.empty((len(classes), *label.shape[-2:]), dtype=torch.uint8, device=label.device)
            for mask, one in zip(masks, classes, strict=True):
                mask.copy_(label[0] == one)
            found.append(InstanceData(labels=classes, masks=masks))
            metas.append(sample.metainfo)
        return found, metas

    @torch.no_grad()
    def _get_targets_single(
        self: Any, cls_score: Tensor, mask_pred: Tensor, gt_instances: Any, img_meta: dict[str, Any]
    ) -> tuple[Any, ...]:
        labels, masks = gt_instances.labels, gt_instances.masks
        points = torch.rand((1, self.num_points, 2), device=cls_score.device)
        predicted = point_sample(mask_pred[None], points)[0]
        assigned = self.assigner.assign(
            pred_instances=InstanceData(scores=cls_score, masks=predicted),
            gt_instances=InstanceData(labels=labels, masks=sample_masks(masks, points)),
            img_meta=img_meta,
        )
        sampled = self.sampler.sample(
            assign_result=assigned,
            pred_instances=InstanceData(scores=cls_score, masks=mask_pred),
            gt_instances=gt_instances,
        )
        target = labels.new_full((self.num_queries,), self.num_classes, dtype=torch.long)
        target[sampled.pos_inds] = labels[sampled.pos_assigned_gt_inds]
        mask_weights = mask_pred.new_zeros((self.num_queries,))
        mask_weights[sampled.pos_inds] = 1.0
        label_weights = labels.new_ones((self.num_queries,))
        chosen = masks[sampled.pos_assigned_gt_inds]
        return target, label_weights, chosen, mask_weights, sampled.pos_inds, sampled.neg_inds, sampled

    def _loss_by_feat_single(
        self: Any, cls_scores: Tensor, mask_preds: Tensor, batch_gt_instances: list[Any], batch_img_metas: list[Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = self.get_targets(list(cls_scores), list(mask_preds), batch_gt_instances, batch_img_metas)
        label_list, label_weight_list, mask_list, mask_weight_list, count = found
        labels, weights = torch.cat(label_list), torch.cat(label_weight_list)
        scores = cls_scores.flatten(0, 1)
        average = scores.new_tensor(self.class_weight)[labels].sum()
        loss_cls = self.loss_cls(scores, labels, weights, avg_factor=average)

        total = max(reduce_mean(scores.new_tensor([count])), 1)
        mask_preds = mask_preds[torch.stack(mask_weight_list) > 0]
        masks = torch.cat(mask_list)
        if len(masks) == 0:
            nothing = mask_preds.sum()
            return loss_cls, nothing, nothing
        with torch.no_grad():
            points = get_uncertain_point_coords_with_randomness(
                mask_preds.unsqueeze(1), None, self.num_points, self.oversample_ratio, self.importance_sample_ratio
            )
            target = sample_masks(masks, points)
        predicted = point_sample(mask_preds.unsqueeze(1), points).squeeze(1)
        loss_dice = self.loss_dice(predicted, target, avg_factor=total)
        loss_mask = self.loss_mask(predicted.reshape(-1), target.reshape(-1), avg_factor=total * self.num_points)
        return loss_cls, loss_mask, loss_dice


def _in_bytes(instances: list[Any]) -> list[Any]:
    for one in instances:
        one.masks = one.masks.to(torch.uint8)
    return instances


class _Recomputing(Changed):
    recomputes: bool

    def _before_change_back(self) -> None:
        del self.recomputes

    def _again(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """Call a function whose convolutions' outputs alone are kept."""
        if self.recomputes and torch.is_grad_enabled():
            return recomputed(function, *inputs, part=self)
        return function(*inputs)


class LeanMaskHead(_Recomputing, FCNMaskHead):
    """Cuts mask targets out of each label mask, not out of a copy of it for each proposal."""

    def get_targets(
        self: Any, sampling_results: Sequence[Any], batch_gt_instances: Sequence[Any], rcnn_train_cfg: Any
    ) -> Tensor:
        """As the plain head's."""
        parts = []
        for sampled, instances in zip(sampling_results, batch_gt_instances, strict=True):
            if type(instances.masks) is BitmapMasks and len(sampled.pos_priors):
                parts.append(_cut(sampled.pos_priors, sampled.pos_assigned_gt_inds, instances.masks, rcnn_train_cfg))
            else:
                parts.append(super().get_targets([sampled], [instances], rcnn_train_cfg))
        return torch.cat(parts)

    def forward(self: Any, x: Tensor) -> Tensor:
        """As the plain head's."""
        convs = self.convs
        if not (self.recomputes and len(convs) and all(map(_has_norm, convs)) and len(x)):
            return super().forward(x)
        x = self._again(nn.Sequential(*convs), x)
        if self.upsample is not None:
            x = self.upsample(x)
            if self.upsample_method == "deconv":
                x = self.relu(x)
        logits: Tensor = self.conv_logits(x)
        return logits


def _cut(boxes: Tensor, of: Tensor, masks: BitmapMasks, cfg: Any) -> Tensor:
    """Mask targets (N, h, w) of N boxes, each out of one of the masks."""
    height, width = masks.height, masks.width
    low, high = boxes.new_zeros(4), boxes.new_tensor([width, height, width, height])
    clipped = torch.minimum(torch.maximum(boxes.detach(), low), high)
    size = cfg.mask_size if isinstance(cfg.mask_size, Sequence) else (cfg.mask_size, cfg.mask_size)
    which = of.cpu().numpy()
    result = clipped.new_zeros(len(boxes), *size)
    used = np.unique(which)
    step = max(1, MASK_BYTES // (height * width * clipped.element_size()))
    for start in range(0, len(used), step):
        chosen = used[start : start + step]
        rows = np.flatnonzero(np.isin(which, chosen))
        index = torch.from_numpy(rows).to(boxes.device)
        first = torch.from_numpy(np.searchsorted(chosen, which[rows])).to(clipped)
        some = torch.from_numpy(masks.masks[chosen]).to(boxes.device).to(clipped.dtype)
        rois = torch.cat([first[:, None], clipped[index]], 1)
        result[index] = roi_align(some[:, None], rois, tuple(size), 1.0, 0, "avg", True).squeeze(1)
    return result.float() if cfg.get("soft_mask_target", False) else (result >= 0.5).float()


class LeanRPNHead(Changed, RPNHead):
    """Applies its last ReLU once."""

    def forward_single(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        """As the plain head's."""
        x = self.rpn_conv(x)
        if not _ends_in_relu(self.rpn_conv):
            x = F.relu(x)
        return self.rpn_cls(x), self.rpn_reg(x)


def _ends_in_relu(module: Any) -> bool:
    last: Any = module[-1] if isinstance(module, nn.Sequential) else module
    return type(last) is ConvModule and last.order[-1] == "act" and type(getattr(last, "activate", None)) is nn.ReLU


class LeanBBoxHead(_Recomputing, ConvFCBBoxHead):
    """Keeps of its shared convolutions what they give."""

    def forward(self: Any, x: Tensor) -> Any:
        """As the plain head's."""
        count = self.num_shared_convs
        if not (self.recomputes and count and all(map(_has_norm, self.shared_convs))):
            return super().forward(x)
        x = self._again(nn.Sequential(*self.shared_convs), x)
        self.num_shared_convs = 0
        try:
            return super().forward(x)
        finally:
            self.num_shared_convs = count


def _has_norm(module: Any) -> bool:
    """Whether an activation in place leaves what the convolution gave as it is."""
    return type(module) is ConvModule and module.with_norm and module.order[:2] == ("conv", "norm")


class LeanPyramid(_Recomputing, SimpleFeaturePyramid):
    """Keeps what its convolutions give."""

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """As the plain neck's."""
        result: tuple[Tensor, ...] = self._again(super().forward, maps)
        return result


class LeanTransformerLayer(_Recomputing):
    """Keeps its inputs."""

    def forward(self, *inputs: Any, **named: Any) -> Any:
        """As the plain layer's."""
        forward = super().forward
        if self.recomputes and torch.is_grad_enabled():
            return checkpoint(partial(forward, **named), *inputs, use_reentrant=False)
        return forward(*inputs, **named)


def make_detector_lean(model: nn.Module, recompute: bool = False) -> list[str]:
    """Have the parts of a detector, or of a segmentor with Mask2Former's head, do without what they need not, in place.

    Losses, gradients, running statistics, state dicts and inference stay what they are.

    Args:
        model: A plain model; its backbone is left alone.
        recompute: Keep inputs of transformer layers and outputs of convolutions, and do the rest again in backward.

    Returns:
        Names of what was changed.
    """
    names = []
    for name, module, how in _parts(model, recompute):
        if isinstance(module, nn.MultiheadAttention):
            ProjectedMultiheadAttention.of(module, weights_are_used=False)
        else:
            changed: Any = module if isinstance(module, how) else change(module, how)
            if isinstance(changed, _Recomputing):
                changed.recomputes = recompute
        names.append(name)
    return names


def make_detector_plain(model: nn.Module) -> None:
    """Undo :func:`make_detector_lean`."""
    for name, module in model.named_modules():
        if not _in_backbone(name):
            change_back(module)


def _in_backbone(name: str) -> bool:
    return name == "backbone" or name.startswith("backbone.")


def _parts(model: nn.Module, recompute: bool) -> Iterator[tuple[str, nn.Module, type[Changed]]]:
    """What can be changed, and how."""
    for name, module in list(model.named_modules()):
        if _in_backbone(name):
            continue
        for how, base, methods in _HOW:
            own = isinstance(module, how)
            wanted = recompute or own or how not in _ONLY_RECOMPUTING
            if wanted and isinstance(module, base) and (own or _are_of(type(module), base, methods)):
                yield name, module, how
        if type(module) is MultiheadAttention and type(module.attn) is nn.MultiheadAttention:
            try:
                check_multihead(module.attn)
            except ValueError:
                continue
            yield f"{name}.attn".lstrip("."), module.attn, ProjectedMultiheadAttention


def _are_of(cls: type, base: type, methods: Sequence[str]) -> bool:
    return all(getattr(cls, method) is getattr(base, method) for method in methods)


_HOW: tuple[tuple[type[Changed], type[nn.Module], tuple[str, ...]], ...] = (
    (LeanMask2FormerHead, Mask2FormerHead, ("_get_targets_single", "_loss_by_feat_single", "get_targets")),
    (LeanMaskHead, FCNMaskHead, ("get_targets", "forward")),
    (LeanRPNHead, RPNHead, ("forward_single",)),
    (LeanBBoxHead, ConvFCBBoxHead, ("forward",)),
    (LeanPyramid, SimpleFeaturePyramid, ("forward",)),
    (LeanTransformerLayer, DetrTransformerEncoderLayer, ()),
    (LeanTransformerLayer, DetrTransformerDecoderLayer, ()),
)
_ONLY_RECOMPUTING = (LeanBBoxHead, LeanPyramid, LeanTransformerLayer)
