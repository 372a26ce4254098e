"""mmseg's decode heads without logits of the image's size, and, if asked for, with little kept for backward: exact.

A head's last steps are linear but for the loss: a 1 x 1 convolution that classifies, and bilinear upsampling, whose
weights sum to 1. Both commute, channel dropout included, so that a classifier can stand before the last upsampling; and
upsampling and loss are computed together, strip by strip.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from mmseg.models.decode_heads import SegformerHead, SETRMLAHead, SETRUPHead
from mmseg.models.decode_heads.cascade_decode_head import BaseCascadeDecodeHead
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from mmseg.models.utils import Upsample, resize
from torch import Tensor, nn

from ...dense.recompute import last_layer, recomputed
from ...method.class_change import Changed, change
from .lean_losses import SmallLogits, loss_of, sampled_weight, why_not, why_not_sampled


class LeanHead(Changed):
    """A decode head that computes its losses from its own small logits.

    Attributes:
        recomputes: Whether its convolutions' outputs alone are kept for backward.
    """

    recomputes: bool

    def _before_change_back(self) -> None:
        del self.recomputes

    def loss(self: Any, *inputs: Any) -> dict[str, Tensor]:
        """As the plain head's ``loss(inputs, [prev_output,] batch_data_samples, train_cfg)``."""
        *features, samples, _ = inputs
        return self._losses_of(*self._small(*features), samples)

    def loss_by_feat(self: Any, seg_logits: Tensor, batch_data_samples: Sequence[Any]) -> dict[str, Tensor]:
        """As the plain head's."""
        return self._losses_of(seg_logits, None, batch_data_samples)

    def cls_seg(self: Any, feat: Tensor) -> Tensor:
        """As the plain head's."""
        if not torch.is_grad_enabled():
            logits: Tensor = super().cls_seg(feat)  # type: ignore[misc]
            return logits
        if self.dropout is not None:
            feat = self.dropout(feat)
        with last_layer():
            return _classified(self.conv_seg, feat)

    def _small(self: Any, *features: Any) -> tuple[Any, Callable[[Tensor], Tensor] | None]:
        """Logits, and the upsampling that they still need to be the plain head's, if there is one."""
        return self._again(self.forward, *features), None

    def _again(self: Any, function: Callable[..., Any], *inputs: Any) -> Any:
        """Call a function, of which little is kept if so asked."""
        if self.recomputes and torch.is_grad_enabled():
            return recomputed(function, *inputs, part=self)
        return function(*inputs)

    def _losses_of(
        self: Any, logits: Tensor, upsampling: Callable[[Tensor], Tensor] | None, samples: Sequence[Any]
    ) -> dict[str, Tensor]:
        label = self._stack_batch_gt(samples).squeeze(1)
        if upsampling is not None and _size_of(upsampling, logits) != tuple(label.shape[1:]):
            logits = upsampling(logits)  # two resizes are not one
        small = SmallLogits(logits, label, self.ignore_index, self.align_corners)
        modules = _losses_in(self)
        weight = None if self.sampler is None else sampled_weight(self.sampler, modules, small)
        losses: dict[str, Tensor] = {}
        for module in modules:
            loss = loss_of(module, small, weight)
            losses[module.loss_name] = losses[module.loss_name] + loss if module.loss_name in losses else loss
        losses["acc_seg"] = small.accuracy()
        return losses


class LeanSETRUPHead(LeanHead, SETRUPHead):
    """SETR's progressive upsampling with the classifier before the last one."""

    def _small(self: Any, *features: Any) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        return setr_up_small(self, *features, again=self._again)


class LeanSETRMLAHead(LeanHead, SETRMLAHead):
    """SETR's multi-level aggregation with the classifier before the upsampling."""

    def _small(self: Any, *features: Any) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        return setr_mla_small(self, *features, again=self._again)


class LeanSegformerHead(LeanHead, SegformerHead):
    """SegFormer's head with its fusion, a 1 x 1 convolution, computed for each map before it is upsampled."""

    def _small(self: Any, *features: Any) -> tuple[Tensor, Callable[[Tensor], Tensor] | None]:
        fusion = self.fusion_conv
        if not _is_plain(fusion.conv) or fusion.order[0] != "conv":
            return super()._small(*features)
        return self._again(self._to_logits, *features), None

    def _to_logits(self: Any, *features: Any) -> Tensor:
        fusion = self.fusion_conv
        maps = self._transform_inputs(*features)
        size = maps[0].shape[2:]
        weights = fusion.conv.weight.split(self.channels, 1)
        total: Any = 0
        for x, convolution, weight in zip(maps, self.convs, weights, strict=True):
            one = F.conv2d(convolution(x), weight)
            total = total + resize(one, size=size, mode=self.interpolate_mode, align_corners=self.align_corners)
        if fusion.conv.bias is not None:
            total = total + fusion.conv.bias[:, None, None]
        for step in fusion.order[1:]:
            if step == "norm" and fusion.with_norm:
                total = fusion.norm(total)
            if step == "act" and fusion.with_activation:
                total = fusion.activate(total)
        return self.cls_seg(total)


def _is_plain(convolution: Any) -> bool:
    """Whether a module is a 1 x 1 convolution, and nothing is missed where it is not called."""
    if type(convolution) is not nn.Conv2d or convolution._forward_hooks or convolution._forward_pre_hooks:
        return False  # a weight that is pruned, or under spectral norm, is computed by a hook
    alone = convolution.groups == 1 and convolution.padding == (0, 0)
    return alone and convolution.kernel_size == convolution.stride == (1, 1)


def _classified(convolution: Any, x: Tensor) -> Tensor:
    """A 1 x 1 convolution as the matrix product that it is: as a convolution, a CPU copies its maps."""
    by_pixel = x.is_contiguous(memory_format=torch.channels_last)
    if not _is_plain(convolution) or not (x.is_contiguous() or by_pixel):
        logits: Tensor = convolution(x)
        return logits
    weight, maps = convolution.weight.flatten(1).expand(len(x), -1, -1), x.flatten(2)
    bias = weight.new_zeros(1, 1) if convolution.bias is None else convolution.bias[:, None]
    # by pixel the transpose, so that its gradient too is by pixel
    of = (bias.mT, maps.mT, weight.mT) if by_pixel else (bias, weight, maps)
    product = torch.baddbmm(*of)
    return (product.mT if by_pixel else product).unflatten(2, x.shape[2:]).contiguous()


def _once(function: Callable[..., Any], *inputs: Any) -> Any:
    return function(*inputs)


def setr_up_small(head: Any, *features: Any, again: Callable[..., Any] = _once) -> tuple[Tensor, nn.Module]:
    """What SETR-UP's head, plain or lean, gives before its last upsampling.

    Args:
        head: The head.
        *features: What its ``forward`` takes.
        again: Calls a piece of it, which may be one that is computed again in backward.

    Returns:
        Logits (B, C, h, w), and the upsampling.
    """
    # from convolution to convolution, so that one piece alone is there while it is computed again
    x = again(partial(_to_first, head), *features)
    for before, after in pairwise(head.up_convs):
        x = again(partial(_to_next, before, after), x)
    return again(partial(_to_logits, head), x), head.up_convs[-1][1]


def setr_mla_small(head: Any, *features: Any, again: Callable[..., Any] = _once) -> tuple[Tensor, nn.Module]:
    """As :func:`setr_up_small`, of SETR-MLA's head."""

    def to_logits(*features: Any) -> Any:
        outs = [up_conv[:-1](x) for x, up_conv in zip(head._transform_inputs(*features), head.up_convs, strict=True)]
        return head.cls_seg(torch.cat(outs, 1))

    return again(to_logits, *features), head.up_convs[0][-1]


def _to_first(head: Any, *features: Any) -> Tensor:
    """What the first convolution of SETR-UP's gives."""
    x = head._transform_inputs(*features)
    batch, channels, height, width = x.shape
    x = head.norm(x.reshape(batch, channels, height * width).transpose(2, 1).contiguous())
    x = x.transpose(1, 2).unflatten(2, (height, width))  # by pixel, as it is: channels_last
    if not (x.device.type == "cpu" or torch.is_autocast_enabled(x.device.type)):
        x = x.contiguous()  # what float32 convolutions on a GPU are quick with
    with last_layer():
        result: Tensor = head.up_convs[0][0].conv(x)
    return result


def _to_next(before: Any, after: Any, x: Tensor) -> Tensor:
    """From what a convolution gave to what the next one gives."""
    convolution, upsampling = before
    x = upsampling(_normed(convolution, x))
    with last_layer():
        result: Tensor = after[0].conv(x)
    return result


def _to_logits(head: Any, x: Tensor) -> Tensor:
    """From what the last convolution gave to the logits."""
    logits: Tensor = head.cls_seg(_normed(head.up_convs[-1][0], x))
    return logits


def _normed(convolution: Any, x: Tensor) -> Tensor:
    """The rest of a convolution with a norm and an activation."""
    if convolution.with_norm:
        x = convolution.norm(x)
    return convolution.activate(x) if convolution.with_activation else x


_LEAN: dict[type[nn.Module], type[LeanHead]] = {
    SETRUPHead: LeanSETRUPHead,
    SETRMLAHead: LeanSETRMLAHead,
    SegformerHead: LeanSegformerHead,
}


def make_heads_lean(model: nn.Module, recompute: bool = False) -> dict[str, str]:
    """Have all decode heads of mmseg's in a model that can compute their losses from small logits, in place.

    Losses, gradients, running statistics, state dicts and inference stay what they are.

    Args:
        model: A plain model.
        recompute: Keep the heads' convolutions' outputs alone, and do the rest again in backward.

    Returns:
        Name of each head to the reason why it was left alone; empty for those that were changed.
    """
    found = {}
    for name, module in model.named_modules():
        if not _is_head(module):
            continue
        found[name] = "" if isinstance(module, LeanHead) else why_left_alone(module)
        if not found[name]:
            plain = not isinstance(module, LeanHead)
            head: Any = change(module, _LEAN.get(type(module), LeanHead)) if plain else module
            head.recomputes = recompute
    return found


def why_left_alone(head: nn.Module) -> str:
    """Why a head cannot compute its losses from small logits; empty if it can."""
    cls: Any = type(head)
    kind = cls.__name__
    if not isinstance(head, BaseDecodeHead):
        return f"{kind} has losses of its own"
    base = BaseCascadeDecodeHead if isinstance(head, BaseCascadeDecodeHead) else BaseDecodeHead
    for method in ("loss", "loss_by_feat", "cls_seg", "_stack_batch_gt"):
        if getattr(cls, method) is not getattr(base, method):
            return f"{kind} has a {method} of its own"
    losses = _losses_in(head)
    if head.sampler is not None and (reason := why_not_sampled(head.sampler, losses)):
        return reason
    reasons = [why_not(loss, head.out_channels, head.sampler is not None) for loss in losses]
    return "; ".join(filter(None, reasons))


def _is_head(module: nn.Module) -> bool:
    package = "mmseg.models.decode_heads"
    named = any(cls.__module__.startswith(package) for cls in type(module).__mro__)
    return isinstance(module, BaseDecodeHead) or (named and type(module).__name__.endswith("Head"))


def _losses_in(head: Any) -> list[Any]:
    return list(head.loss_decode) if isinstance(head.loss_decode, nn.ModuleList) else [head.loss_decode]


def _size_of(upsampling: Any, logits: Tensor) -> tuple[int, ...]:
    """The size that it gives, without computing it."""
    assert isinstance(upsampling, Upsample)
    if not upsampling.scale_factor:
        return tuple(upsampling.size)
    return tuple(int(side * upsampling.scale_factor) for side in logits.shape[2:])
