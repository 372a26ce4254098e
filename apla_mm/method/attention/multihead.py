"""``nn.MultiheadAttention`` whose projection is called, and which keeps no N x N matrix for backward."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..class_change import Changed, change


class ProjectedMultiheadAttention(Changed, nn.MultiheadAttention):
    """Computes what ``nn.MultiheadAttention`` computes, by scaled dot product attention and its ``out_proj`` called.

    The plain module passes ``out_proj.weight`` to a function, so that a layer that replaces it is never called; and it
    computes attention weights, N x N for each head, unless ``need_weights=False``. Here they are computed where the
    caller needs them. mmcv's wrapper asks for them and throws them away, so under it they are not.

    Attributes:
        weights_are_used: False if whoever calls this never looks at the attention weights.
    """

    weights_are_used: bool

    @classmethod
    def of(cls, attention: nn.MultiheadAttention, weights_are_used: bool) -> "ProjectedMultiheadAttention":
        """Have a plain module compute so, in place.

        Args:
            attention: The module, of which :func:`check_multihead` has nothing to say.
            weights_are_used: False if whoever calls it never looks at the attention weights.

        Returns:
            The same module.
        """
        projected = change(attention, cls)
        projected.weights_are_used = weights_are_used
        return projected

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As of ``nn.MultiheadAttention``.

        Args:
            query: (L, B, E), or (B, L, E) with ``batch_first``, or (L, E).
            key: (S, B, Ek), likewise.
            value: (S, B, Ev), likewise.
            key_padding_mask: (B, S), True where a key is ignored, or added to the scores.
            need_weights: Whether to return the attention weights.
            attn_mask: (L, S) or (B * heads, L, S), True where attention is forbidden, or added to the scores.
            average_attn_weights: Whether the weights are averaged over the heads.
            is_causal: A hint that ``attn_mask`` is causal; the mask itself is what counts.

        Returns:
            The output, shaped as ``query``, and the attention weights (B, L, S) or (B, heads, L, S); None if they
            are not needed.
        """
        batched = query.dim() == 3
        tokens = [t if batched else t.unsqueeze(1) for t in (query, key, value)]
        if self.batch_first and batched:
            q, k, v = tokens
        else:
            q, k, v = (t.transpose(0, 1) for t in tokens)
        if key_padding_mask is not None and not batched:
            key_padding_mask = key_padding_mask.unsqueeze(0)

        q, k, v = (
            t.reshape(t.shape[0], t.shape[1], self.num_heads, self.head_dim).transpose(1, 2)
            for t in self._project_in(q, k, v, query is key and key is value)
        )
        mask = self._mask(attn_mask, key_padding_mask, q)
        dropout = self.dropout if self.training else 0.0
        weights = None
        if need_weights and self.weights_are_used:
            scores = q @ k.transpose(-2, -1) / self.head_dim**0.5
            weights = (scores if mask is None else scores + mask).softmax(-1)
            weights = F.dropout(weights, dropout)
            x = weights @ v
            weights = weights.mean(1) if average_attn_weights else weights
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        x = self.out_proj(x.transpose(1, 2).flatten(2))
        if not (self.batch_first and batched):
            x = x.transpose(0, 1)
        if not batched:
            x, weights = x.squeeze(1), None if weights is None else weights.squeeze(0)
        return x, weights

    def _project_in(self, q: Tensor, k: Tensor, v: Tensor, same: bool) -> tuple[Tensor, Tensor, Tensor]:
        if self._qkv_same_embed_dim:
            if same:
                q, k, v = F.linear(q, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
                return q, k, v
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        q, k, v = (F.linear(t, w, b) for t, w, b in zip((q, k, v), weights, biases, strict=True))
        return q, k, v

    def _mask(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor) -> Tensor | None:
        """Both masks as one that is added to the scores, broadcastable to (B, heads, L, S)."""
        mask = None
        if attn_mask is not None:
            mask = _to_additive(attn_mask, q)
            if mask.dim() == 3:
                mask = mask.view(q.shape[0], self.num_heads, *mask.shape[1:])
        if key_padding_mask is not None:
            padding = _to_additive(key_padding_mask, q)[:, None, None]
            mask = padding if mask is None else mask + padding
        return mask

    def _before_change_back(self) -> None:
        del self.weights_are_used


def check_multihead(attention: nn.MultiheadAttention) -> None:
    """Refuse a module that adds keys and values of its own.

    Raises:
        ValueError: It does (``add_bias_kv``, ``add_zero_attn``).
    """
    if attention.bias_k is not None or attention.add_zero_attn:
        raise ValueError("an nn.MultiheadAttention with add_bias_kv or add_zero_attn cannot be adapted")


def _to_additive(mask: Tensor, like: Tensor) -> Tensor:
    if mask.dtype == torch.bool:
        return torch.zeros(mask.shape, dtype=like.dtype, device=like.device).masked_fill_(mask, float("-inf"))
    return mask.to(like.dtype)
