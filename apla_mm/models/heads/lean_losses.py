"""mmseg's losses from logits that are still to be resized: exact, and without the resized logits."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.losses import CrossEntropyLoss, DiceLoss, FocalLoss, TverskyLoss
from mmseg.structures import OHEMPixelSampler
from torch import Tensor, nn

from ...dense import resized_cross_entropy, strip_sums

_EPS = torch.finfo(torch.float32).eps


class SmallLogits:
    """Logits of a head, and what they are to be compared with.

    Args:
        logits: (B, C, h, w).
        label: (B, H, W), int64.
        ignore_index: Of the head.
        align_corners: How they are resized to the label's size.
    """

    def __init__(self, logits: Tensor, label: Tensor, ignore_index: int, align_corners: bool) -> None:
        self.logits, self.label = logits, label
        self.ignore_index, self.align_corners = ignore_index, align_corners
        self._correct: Tensor | None = None

    def cross_entropy(self, class_weight: Tensor | None, pixel_weight: Tensor | None, reduction: str) -> Tensor:
        """Softmax cross-entropy; what is right is counted beside it."""
        found = resized_cross_entropy(
            self.logits,
            self.label,
            align_corners=self.align_corners,
            ignore_index=self.ignore_index,
            class_weight=class_weight,
            pixel_weight=pixel_weight,
            reduction=reduction,
            with_accuracy=self._correct is None,
        )
        self._correct = self._correct if found.correct is None else found.correct
        return found.loss

    def sums(self, of: Callable[..., Tensor], *maps: Tensor) -> Tensor:
        """Sums over pixels; see :func:`apla_mm.dense.strip_sums`."""
        return strip_sums(of, self.logits, (self.label, *maps), align_corners=self.align_corners)

    def accuracy(self) -> Tensor:
        """Share of pixels that are right, in percent, (1,), as mmseg's ``accuracy`` gives it."""
        correct = self._correct
        if correct is None:
            with torch.no_grad():
                correct = self.sums(self._right)
        counted = (self.label != self.ignore_index).sum()
        return ((correct + _EPS) * (100.0 / (counted + _EPS))).float().reshape(1)

    def _right(self, logits: Tensor, label: Tensor) -> Tensor:
        return ((logits.argmax(1) == label) & (label != self.ignore_index)).sum()


def why_not(loss: nn.Module, channels: int, sampled: bool) -> str:
    """Why a loss needs the resized logits; empty if it does not.

    Args:
        loss: A loss of mmseg's.
        channels: Of the logits.
        sampled: Whether a sampler weights its pixels.
    """
    kind = type(loss)
    if kind not in _LOSSES:
        return f"{kind.__name__} is no function of sums over pixels that is known"
    if isinstance(loss, CrossEntropyLoss):
        if loss.use_mask:
            return "CrossEntropyLoss(use_mask=True) is of boxes' masks"
        if loss.use_sigmoid and (loss.class_weight is not None or sampled):
            return "CrossEntropyLoss(use_sigmoid=True) has class weights or a sampler"
    elif isinstance(loss, FocalLoss) and channels == 1:
        return "FocalLoss of one channel compares each pixel with each other one"
    elif sampled:
        return f"{kind.__name__} of sampled pixels"
    if loss.__dict__.get("reduction", "mean") not in ("mean", "sum"):
        return f"{kind.__name__}(reduction={loss.__dict__['reduction']!r})"
    return ""


def why_not_sampled(sampler: nn.Module, losses: list[nn.Module]) -> str:
    """Why a sampler needs the resized logits; empty if it does not."""
    if type(sampler) is not OHEMPixelSampler:
        return f"the sampler {type(sampler).__name__}"
    plain = [type(loss) is CrossEntropyLoss and not loss.use_sigmoid for loss in losses]
    return "" if all(plain) else "OHEMPixelSampler beside a loss that is not softmax cross-entropy"


def loss_of(loss: nn.Module, small: SmallLogits, weight: Tensor | None) -> Tensor:
    """What ``loss(resized logits, label, weight=weight, ignore_index=...)`` gives.

    Args:
        loss: One for which :func:`why_not` says nothing.
        small: Logits and label.
        weight: (B, H, W), each pixel's, of a sampler.
    """
    return _LOSSES[type(loss)](loss, small, weight)


def sampled_weight(sampler: Any, losses: list[Any], small: SmallLogits) -> Tensor:
    """Weights (B, H, W) of 0 and 1, as OHEMPixelSampler gives them."""
    with torch.no_grad():
        counts = small.label != small.ignore_index
        kept = sampler.min_kept * len(small.label)
        if sampler.thresh is None:
            found: Any = sum(loss.loss_weight * _of_pixels(loss, small) for loss in losses)
            chosen = torch.zeros_like(found[counts])
            chosen[found[counts].sort(descending=True)[1][:kept]] = 1
        else:
            share = small.cross_entropy(None, None, "none").neg().exp()[counts]
            ordered = share.sort()[0]
            least = ordered[min(kept, len(ordered) - 1)] if len(ordered) else share.new_zeros(())
            chosen = (share < least.clamp_min(sampler.thresh)).to(share.dtype)
        weight = torch.zeros(small.label.shape, dtype=chosen.dtype, device=chosen.device)
        weight[counts] = chosen
        return weight


def _of_pixels(loss: Any, small: SmallLogits) -> Tensor:
    return small.cross_entropy(_class_weight(loss, small), None, "none")


def _class_weight(loss: Any, small: SmallLogits) -> Tensor | None:
    if loss.class_weight is None:
        return None
    dtype = torch.promote_types(small.logits.dtype, torch.float32)
    return torch.as_tensor(loss.class_weight, dtype=dtype, device=small.logits.device)


def _cross_entropy(loss: Any, small: SmallLogits, weight: Tensor | None) -> Tensor:
    if loss.use_sigmoid:
        return _binary_cross_entropy(loss, small)
    class_weight = _class_weight(loss, small)
    total = small.cross_entropy(class_weight, weight, "sum")
    if loss.reduction == "sum":
        return loss.loss_weight * total
    counts = small.label != small.ignore_index
    if class_weight is not None:
        label = torch.where(counts, small.label, 0)
        return loss.loss_weight * total / ((class_weight[label] * counts).sum() + _EPS)
    if loss.avg_non_ignore:
        return loss.loss_weight * total / (counts.sum() + _EPS)
    return loss.loss_weight * total / (small.label.numel() + _EPS)


def _binary_cross_entropy(loss: Any, small: SmallLogits) -> Tensor:
    classes = max(2, small.logits.shape[1])  # one channel tells two
    torch._assert_async(
        ((small.label < classes) | (small.label == small.ignore_index)).all(),
        f"label maps hold labels from {classes} on, and the sigmoid loss has {classes} classes: map them to "
        f"{small.ignore_index}, which is ignored, or set num_classes",
    )

    def total(logits: Tensor, label: Tensor) -> Tensor:
        counts = ((label >= 0) & (label != small.ignore_index)).to(logits.dtype)
        if logits.shape[1] == 1:
            target = label.to(logits.dtype).unsqueeze(1)
        else:
            target = _one_hot(label, logits.shape[1]).to(logits.dtype)
        each = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
        return (each * counts.unsqueeze(1)).sum()

    result = small.sums(total)
    if loss.reduction == "mean":
        channels = small.logits.shape[1]
        if loss.avg_non_ignore:
            counts = (small.label >= 0) & (small.label != small.ignore_index)
            result = result / (counts.sum() * channels + _EPS)
        else:
            result = result / (small.label.numel() * channels)
    return loss.loss_weight * result


def _focal(loss: Any, small: SmallLogits, weight: Tensor | None) -> Tensor:
    def total(logits: Tensor, label: Tensor) -> Tensor:
        total: Tensor = loss(logits, label.contiguous(), ignore_index=small.ignore_index, reduction_override="sum")
        return total

    result = small.sums(total)
    return result / (small.label.numel() * small.logits.shape[1]) if loss.reduction == "mean" else result


def _dice(loss: Any, small: SmallLogits, weight: Tensor | None) -> Tensor:
    channels = small.logits.shape[1]
    kept = [i for i in range(channels) if i != loss.ignore_index]

    def totals(logits: Tensor, label: Tensor) -> Tensor:
        share = logits
        if loss.activate:
            share = logits.sigmoid() if loss.use_sigmoid else logits.softmax(1) if channels > 1 else logits
        target = _one_hot(label.clamp(0, channels), channels).to(logits.dtype)
        share, target = share[:, kept].flatten(1), target[:, kept].flatten(1)
        own, all_of_target = (share, target) if loss.naive_dice else (share * share, target * target)
        return torch.stack([(share * target).sum(1), own.sum(1), all_of_target.sum(1)])

    both, own, of_target = small.sums(totals)
    if loss.naive_dice:
        each = 1 - (2 * both + loss.eps) / (own + of_target + loss.eps)
    else:
        each = 1 - 2 * both / (own + of_target + 2 * loss.eps)
    return loss.loss_weight * (each.mean() if loss.reduction == "mean" else each.sum())


def _tversky(loss: Any, small: SmallLogits, weight: Tensor | None) -> Tensor:
    channels = small.logits.shape[1]

    def totals(logits: Tensor, label: Tensor) -> Tensor:
        share = logits.softmax(1)
        target = _one_hot(label.clamp(0, channels - 1), channels).to(logits.dtype)
        counts = (label != loss.ignore_index).unsqueeze(1).to(logits.dtype)
        right, wrong, missed = share * target, share * (1 - target), (1 - share) * target
        return torch.stack([(one * counts).sum((2, 3)) for one in (right, wrong, missed)])

    right, wrong, missed = small.sums(totals)
    each = 1 - (right + loss.smooth) / (right + loss.alpha * wrong + loss.beta * missed + loss.smooth)
    each = each.mean(0)
    if (class_weight := _class_weight(loss, small)) is not None:
        each = each * class_weight
    return loss.loss_weight * each[[i for i in range(channels) if i != loss.ignore_index]].sum() / channels


def _one_hot(label: Tensor, channels: int) -> Tensor:
    """(B, channels, H, W) of bool; labels that are none of the channels are nowhere."""
    return label.unsqueeze(1) == torch.arange(channels, device=label.device)[:, None, None]


_LOSSES: dict[type[nn.Module], Callable[[Any, SmallLogits, Tensor | None], Tensor]] = {
    CrossEntropyLoss: _cross_entropy,
    DiceLoss: _dice,
    FocalLoss: _focal,
    TverskyLoss: _tversky,
}
