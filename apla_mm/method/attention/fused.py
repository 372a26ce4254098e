"""Attentions whose N x N matrices are written out, computed so that none of these is kept for backward."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ..class_change import Changed


class FusedAttention(Changed):
    """Computes what the plain module computes; of it q, k, v and a mask as it was given are kept for backward.

    Scaled dot product attention keeps the mask it is given, which here is the relative position bias of every head,
    and of every window too where these are masked; and it keeps matrices of the same size where that bias trains, or
    where there is dropout. So the bias is gathered and the attention done again in backward.

    It is an instance of the plain module's class too, whose ``attn_drop`` and ``softmax`` are not called.
    """

    num_heads: int
    scale: float
    qkv: nn.Linear
    attn_drop: nn.Dropout
    proj: nn.Module
    proj_drop: nn.Module
    relative_position_index: Tensor

    def _attention(self, x: Tensor, mask: Tensor | None = None, *further: Any) -> Tensor:
        """Everything but the projection.

        Args:
            x: (B, N, C).
            mask: (W, heads or 1, N, N), added to the scores; x holds one image's W windows after another's.
            further: What :meth:`_position` needs.

        Returns:
            (B, N, C).
        """
        q, k, v = self._project_in(x)
        if mask is not None:
            mask = mask.to(q.dtype)
        dropout = self.attn_drop.p if self.attn_drop.training else 0.0
        arguments = (dropout, q, k, v, mask, *further)
        if torch.is_grad_enabled() and any(t.requires_grad for t in (q, *self.parameters(recurse=False))):
            x = checkpoint(self._attend, *arguments, use_reentrant=False, preserve_rng_state=dropout > 0)
        else:
            x = self._attend(*arguments)
        return x.transpose(1, 2).flatten(2)

    def _project_in(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q_bias, v_bias = getattr(self, "q_bias", None), getattr(self, "v_bias", None)
        if q_bias is None or v_bias is None:
            x = self.qkv(x)
        else:
            x = F.linear(x, self.qkv.weight, torch.cat((q_bias, torch.zeros_like(v_bias), v_bias)))
        q, k, v = x.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
        return q, k, v

    def _attend(self, dropout: float, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *further: Any) -> Tensor:
        q, k = self._position(q, k, *further)
        bias = self._bias()
        if bias is not None:
            bias = bias.to(q.dtype).unsqueeze(0)
            mask = bias if mask is None else bias + mask

        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=self.scale)

        if mask is None or len(mask) == 1:
            return attend(q, k, v)
        # Fused kernels take four dimensions, so (images, W, ...) cannot be broadcast to; one image after another
        # makes the mask of all images unnecessary, and copies of q, k and v as (images, W * heads, ...) too.
        return torch.cat([attend(*part) for part in zip(*(t.split(len(mask)) for t in (q, k, v)), strict=True)])

    def _position(self, q: Tensor, k: Tensor, *further: Any) -> tuple[Tensor, Tensor]:
        """What is done to q and k, (B, heads, N, C / heads), before they meet."""
        return q, k

    def _bias(self) -> Tensor | None:
        """What is added to the scores: (heads, N, N)."""
        table = getattr(self, "relative_position_bias_table", None)
        return None if table is None else self._gather(table)

    def _gather(self, table: Tensor) -> Tensor:
        return table[self.relative_position_index].permute(2, 0, 1).contiguous()


class _Window(FusedAttention):
    """Swin's."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """As of the plain module.

        Args:
            x: (images * W, N, C).
            mask: (W, N, N), added to the scores.
        """
        return self.proj_drop(self.proj(self._attention(x, None if mask is None else mask.unsqueeze(1))))


class _CosineWindow(_Window):
    """Swin V2's."""

    scale = 1.0
    logit_scale: Tensor
    cpb_mlp: nn.Module
    relative_coords_table: Tensor

    def _position(self, q: Tensor, k: Tensor, *further: Any) -> tuple[Tensor, Tensor]:
        scale = self.logit_scale.clamp(max=math.log(1.0 / 0.01)).exp()
        return F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)

    def _bias(self) -> Tensor:
        table = self.cpb_mlp(self.relative_coords_table).view(-1, self.num_heads)
        return 16 * self._gather(table).sigmoid()


class _BEiT(FusedAttention):
    def forward(self, x: Tensor, rel_pos_bias: Tensor | None = None) -> Tensor:
        """As of the plain module.

        Args:
            x: (B, N, C).
            rel_pos_bias: (heads, N, N), added to the scores.
        """
        return self.proj_drop(self.proj(self._attention(x, None if rel_pos_bias is None else rel_pos_bias[None])))


class _Rotary(FusedAttention):
    """EVA-02's."""

    rope: Callable[[Tensor, Any], Tensor] | None
    with_cls_token: bool

    def forward(self, x: Tensor, patch_resolution: Any) -> Tensor:
        """As of the plain module.

        Args:
            x: (B, N, C).
            patch_resolution: Height and width in patches.
        """
        return self.proj_drop(self.proj(self._attention(x, None, patch_resolution)))

    def _position(self, q: Tensor, k: Tensor, *further: Any) -> tuple[Tensor, Tensor]:
        if not self.rope:
            return q, k
        first = int(self.with_cls_token)
        rotated = (torch.cat((t[:, :, :first], self.rope(t[:, :, first:], *further)), 2).type_as(t) for t in (q, k))
        q, k = rotated
        return q, k


class _Grouped(FusedAttention):
    """That of Twins."""

    window_size: int

    def forward(self, x: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """As of the plain module.

        Args:
            x: (B, height * width, C).
            hw_shape: Height and width.
        """
        (b, n, c), (h, w), size = x.shape, hw_shape, self.window_size
        pad_h, pad_w = -h % size, -w % size
        x = F.pad(x.view(b, h, w, c), (0, 0, 0, pad_w, 0, pad_h))
        rows, columns = x.shape[1] // size, x.shape[2] // size

        def windows(x: Tensor) -> Tensor:
            return x.view(-1, rows, size, columns, size, x.shape[-1]).transpose(2, 3).reshape(-1, size**2, x.shape[-1])

        mask = None
        if pad_h and pad_w:  # the plain module masks nothing where one of them is 0
            padding = x.new_zeros(1, *x.shape[1:3], 1)
            padding[:, -pad_h:] = 1
            padding[:, :, -pad_w:] = 1
            padding = windows(padding)
            mask = (padding != padding.mT).unsqueeze(1) * -1000.0
        x = self._attention(windows(x), mask)
        x = x.view(b, rows, columns, size, size, c).transpose(2, 3).reshape(b, rows * size, columns * size, c)
        return self.proj_drop(self.proj(x[:, :h, :w].reshape(b, n, c)))


#: Class with a written-out forward -> its fused one. Classes are named, so that nothing but torch is imported.
_FUSED: dict[str, type[FusedAttention]] = {
    "mmdet.models.backbones.swin.WindowMSA": _Window,
    "mmseg.models.backbones.beit.BEiTAttention": _BEiT,
    "mmseg.models.backbones.swin.WindowMSA": _Window,
    "mmseg.models.backbones.twins.LocallyGroupedSelfAttention": _Grouped,
    "mmpretrain.models.backbones.twins.LocallyGroupedSelfAttention": _Grouped,
    "mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE": _Rotary,
    "mmpretrain.models.utils.attention.BEiTAttention": _BEiT,
    "mmpretrain.models.utils.attention.WindowMSA": _Window,
    "mmpretrain.models.utils.attention.WindowMSAV2": _CosineWindow,
}


def fused_kind(attention: nn.Module) -> type[FusedAttention] | None:
    """What computes in place of a written-out attention.

    Args:
        attention: Any module. A subclass with a forward of its own is another kind of attention.

    Returns:
        Its fused class, for :func:`~..class_change.change`; None if the attention is of no kind known here.
    """
    computes = next(cls for cls in type(attention).__mro__ if "forward" in vars(cls))
    return _FUSED.get(f"{computes.__module__}.{computes.__qualname__}")
