"""Cross-entropy of logits that are resized to the label map's size, without the resized logits.

The loss of a pixel needs the logits of that pixel alone, and bilinear resizing is linear. So the loss is summed strip
by strip of rows, and the gradient of the small logits in the same pass: nothing of size ``(B, C, H, W)`` exists at any
time.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .strips import Rows, add_strip_gradient, resize_strip, strip_heights


class ResizedCrossEntropy(NamedTuple):
    """The loss, and how many pixels are right, if that was asked for.

    Attributes:
        loss: A scalar, or (B, H, W) with ``reduction='none'``.
        correct: How many pixels that are not ignored have their label's logit as the largest; int64 scalar.
        counted: How many are not ignored; int64 scalar.
    """

    loss: Tensor
    correct: Tensor | None
    counted: Tensor | None


def resized_cross_entropy(
    logits: Tensor,
    label: Tensor,
    *,
    align_corners: bool = False,
    ignore_index: int = 255,
    class_weight: Tensor | None = None,
    pixel_weight: Tensor | None = None,
    label_smoothing: float = 0.0,
    reduction: str = "mean",
    with_accuracy: bool = False,
    budget: int | None = None,
) -> ResizedCrossEntropy:
    """``F.cross_entropy(F.interpolate(logits, label's size, mode='bilinear'), label)``, without full-size logits.

    Equal to it to rounding, and computed in float32 at least, whatever autocast says. The gradient is made in the
    forward pass (``'none'``: in backward, strip by strip again). Nothing waits for the device.

    Args:
        logits: (B, C, h, w), any floating dtype.
        label: (B, H, W), int64, of any size: larger, smaller, no multiple.
        align_corners: As of ``F.interpolate``.
        ignore_index: Label of pixels that do not count.
        class_weight: (C,), each class's weight; a constant.
        pixel_weight: (B, H, W), each pixel's weight, times the class's; a constant, and no part of the mean's
            denominator.
        label_smoothing: In [0, 1], as of ``F.cross_entropy``.
        reduction: ``'mean'`` (over the weights of pixels that count, as in torch), ``'sum'`` or ``'none'``.
        with_accuracy: Count the pixels that are right, at the cost of a maximum over the classes.
        budget: Bytes of a strip; None for what suits the device.

    Returns:
        The loss, and the counts.

    Raises:
        ValueError: Shapes, dtypes or ``reduction`` do not fit, or a weight requires a gradient.
        IndexError: A label that is not ignored is no class (on a GPU, an assertion of the device).
    """
    _check(logits, label, class_weight, pixel_weight, label_smoothing, reduction)
    settings = _Settings(align_corners, ignore_index, label_smoothing, reduction, with_accuracy, budget)
    with torch.autocast(logits.device.type, enabled=False):
        if logits.dtype in (torch.float16, torch.bfloat16):
            logits = logits.float()
        weights = [None if w is None else w.detach().to(logits.dtype) for w in (class_weight, pixel_weight)]
        loss, correct, counted = _Function.apply(logits, label, *weights, settings)
    return ResizedCrossEntropy(loss, correct if with_accuracy else None, counted if with_accuracy else None)


class _Settings(NamedTuple):
    align_corners: bool
    ignore_index: int
    smoothing: float
    reduction: str
    with_accuracy: bool
    budget: int | None


class _Function(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        label: Tensor,
        class_weight: Tensor | None,
        pixel_weight: Tensor | None,
        settings: _Settings,
    ) -> tuple[Tensor, Tensor, Tensor]:
        strips = _Strips(logits, label, class_weight, pixel_weight, settings)
        whole = settings.reduction == "none"
        gradient = torch.zeros_like(logits) if ctx.needs_input_grad[0] and not whole else None
        loss, correct, counted = strips.forward(gradient)
        ctx.settings = settings
        if whole:
            ctx.save_for_backward(logits, label, class_weight, pixel_weight)
        elif settings.reduction == "mean":
            scale = strips.denominator().reciprocal()
            loss = loss * scale  # where nothing counts NaN, without a gradient, as in torch
            ctx.save_for_backward(None if gradient is None else gradient.mul_(torch.where(counted > 0, scale, 0)))
        else:
            ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(correct, counted)
        return loss, correct, counted

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        if ctx.settings.reduction == "none":
            logits, label, class_weight, pixel_weight = ctx.saved_tensors
            scale = grad if pixel_weight is None else grad * pixel_weight
            gradient = torch.zeros_like(logits)
            _Strips(logits, label, class_weight, scale, ctx.settings).forward(gradient)
        else:
            gradient = ctx.saved_tensors[0] * grad
        return gradient, None, None, None, None


class _Strips:
    """The computation, strip by strip."""

    def __init__(
        self,
        logits: Tensor,
        label: Tensor,
        class_weight: Tensor | None,
        pixel_weight: Tensor | None,
        settings: _Settings,
    ) -> None:
        self.logits, self.settings = logits, settings
        self.class_weight = class_weight
        self.counts = label != settings.ignore_index
        self.label = torch.where(self.counts, label, 0)
        weight = self.counts.to(logits.dtype)
        if class_weight is not None:
            weight = weight * class_weight[self.label]
        self.class_weights = weight
        self.pixel_weight = pixel_weight

    def denominator(self) -> Tensor:
        """Sum of the weights of what counts."""
        return self.class_weights.sum()

    def forward(self, gradient: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """The loss, summed or of each pixel, and the counts; adds the sum's gradient to ``gradient``."""
        batch, classes, height, _ = self.logits.shape
        large, width = self.label.shape[1:]
        rows = Rows.of(height, large, self.settings.align_corners, self.logits)
        losses = []
        correct = torch.zeros((), dtype=torch.int64, device=self.logits.device)
        row_bytes = batch * classes * width * self.logits.element_size()
        for start, end in strip_heights(large, row_bytes, self.logits.device, self.settings.budget):
            strip = resize_strip(self.logits, rows, start, end, width, self.settings.align_corners)
            loss, right, strip = self._strip(strip, start, end, gradient is not None)
            losses.append(loss)
            if right is not None:
                correct = correct + right
            if gradient is not None:
                add_strip_gradient(gradient, strip, rows, start, end, self.settings.align_corners)
        if self.settings.reduction == "none":
            return torch.cat(losses, 1), correct, self.counts.sum()
        return torch.stack(losses).sum(), correct, self.counts.sum()

    def _strip(self, z: Tensor, start: int, end: int, wanted: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        """Loss and count of a strip's logits, which become their gradient in place, if it is wanted."""
        label = self.label[:, start:end].unsqueeze(1)
        weight = self.class_weights[:, start:end].unsqueeze(1)
        pixel = None if self.pixel_weight is None else self.pixel_weight[:, start:end].unsqueeze(1)
        largest = z.amax(1, keepdim=True)
        own = z.gather(1, label)
        right = (
            ((own == largest) & self.counts[:, start:end].unsqueeze(1)).sum() if self.settings.with_accuracy else None
        )
        smoothing = self.settings.smoothing / z.shape[1]
        mean = self._weighted_sum(z) if smoothing else None
        z = z.sub_(largest).exp_()
        total = z.sum(1, keepdim=True)
        log_total = total.log().add_(largest)
        loss = (log_total - own) * weight
        scale = weight
        if smoothing:
            assert mean is not None
            counts = self.counts[:, start:end].unsqueeze(1).to(z.dtype)
            all_weights = z.shape[1] if self.class_weight is None else self.class_weight.sum()
            keep = 1 - self.settings.smoothing
            loss = keep * loss + smoothing * counts * (all_weights * log_total - mean)
            scale = keep * weight + smoothing * counts * all_weights
        if pixel is not None:
            loss, scale = loss * pixel, scale * pixel
        if wanted:
            z.mul_(scale / total)
            taken = weight if pixel is None else weight * pixel
            z.scatter_add_(1, label, -(1 - self.settings.smoothing) * taken)
            if smoothing:
                spread = smoothing * (counts if pixel is None else counts * pixel)
                z.sub_(spread if self.class_weight is None else spread * self.class_weight[:, None, None])
        return loss.squeeze(1) if self.settings.reduction == "none" else loss.sum(), right, z

    def _weighted_sum(self, z: Tensor) -> Tensor:
        if self.class_weight is None:
            return z.sum(1, keepdim=True)
        return torch.einsum("bchw,c->bhw", z, self.class_weight).unsqueeze(1)


def _check(
    logits: Tensor,
    label: Tensor,
    class_weight: Tensor | None,
    pixel_weight: Tensor | None,
    label_smoothing: float,
    reduction: str,
) -> None:
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(f"logits must be (B, C, h, w) of a floating dtype, not {logits.dtype} {tuple(logits.shape)}")
    if label.dim() != 3 or len(label) != len(logits) or label.dtype != torch.int64:
        raise ValueError(f"label must be int64 ({len(logits)}, H, W), not {label.dtype} {tuple(label.shape)}")
    if class_weight is not None and class_weight.shape != logits.shape[1:2]:
        raise ValueError(f"class_weight must be ({logits.shape[1]},), not {tuple(class_weight.shape)}")
    if pixel_weight is not None and pixel_weight.shape != label.shape:
        raise ValueError(f"pixel_weight must be {tuple(label.shape)}, as label, not {tuple(pixel_weight.shape)}")
    for name, constant in (("class_weight", class_weight), ("pixel_weight", pixel_weight)):
        if constant is not None and constant.requires_grad and torch.is_grad_enabled():
            raise ValueError(f"{name} requires a gradient, and there is one of the logits alone: detach it")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"label_smoothing={label_smoothing} must be in [0, 1]")
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction={reduction!r} must be 'mean', 'sum' or 'none'")
