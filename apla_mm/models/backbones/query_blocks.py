"""A ViT's last blocks, which queries of a head may join."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class QueryBlocks:
    """An image's tokens before a ViT's last blocks, and these blocks.

    The blocks stay the backbone's. Queries stand behind the tokens, where no position is added to them, so that
    the blocks are run as they are.

    Attributes:
        tokens: (B, prefix + h * w, C).
        grid: (h, w).
        prefix: How many tokens (class, registers) stand before the grid's.
        blocks: The last ones.
        norm: The model's final norm.
        ropes: Rotary embedding of each block, (h * w, 2 * D) or (heads, h * w, 2 * D); None of one that has none.
        autocast: The dtype of the autocast that the blocks before ran under, and these run under wherever they are run;
            None if there was none.
    """

    tokens: Tensor
    grid: tuple[int, int]
    prefix: int
    blocks: Sequence[nn.Module]
    norm: nn.Module
    ropes: Sequence[Tensor | None]
    autocast: torch.dtype | None = None

    def join(self, queries: Tensor) -> Tensor:
        """Tokens with queries (Q, C) behind them: (B, prefix + h * w + Q, C)."""
        return torch.cat([self.tokens, queries.to(self.tokens.dtype).expand(self.tokens.shape[0], -1, -1)], 1)

    def split(self, joined: Tensor) -> tuple[Tensor, Tensor]:
        """The queries (B, Q, C) and the map (B, C, h, w) of normed tokens."""
        end = self.tokens.shape[1]
        normed = self.norm(joined)
        return normed[:, end:], normed[:, self.prefix : end].transpose(1, 2).unflatten(2, self.grid)

    def run(self, index: int, joined: Tensor, seen: Tensor | None = None) -> Tensor:
        """Run one block.

        Args:
            index: Of the block.
            joined: Tokens and queries (B, N + Q, C).
            seen: Which of the grid's tokens each query attends to, bool (B, Q, h * w); None for all.

        Returns:
            (B, N + Q, C).
        """
        options: dict[str, Any] = {}
        if seen is not None:
            options["attn_mask"] = self._mask(seen, joined.shape[1])
        if (rope := self.ropes[index]) is not None:
            options["rope"] = _lengthened(rope, joined.shape[1] - self.tokens.shape[1])
        device = joined.device.type
        with nullcontext() if self.autocast is None else torch.autocast(device, dtype=self.autocast):
            result: Tensor = self.blocks[index](joined, **options)
        return result

    def _mask(self, seen: Tensor, length: int) -> Tensor:
        """True where one token attends to another, (B, 1, N + Q, N + Q)."""
        end = self.tokens.shape[1]
        mask = seen.new_ones(seen.shape[0], 1, length, length)
        mask[:, 0, end:, self.prefix : end] = seen
        return mask


def _lengthened(rope: Tensor, queries: int) -> Tensor:
    """A rotary embedding, sines and cosines (..., N, 2 * D), which turns what stands behind by nothing."""
    half = rope.shape[-1] // 2
    none = rope.new_zeros(*rope.shape[:-2], queries, 2 * half)
    none[..., half:] = 1
    return torch.cat([rope, none], -2)


def query_blocks(vit: Any, x: Tensor, count: int) -> QueryBlocks:
    """Run all but the last blocks of a ViT.

    Args:
        vit: A timm ``VisionTransformer`` or ``Eva`` made with ``dynamic_img_size=True``.
        x: Images, (B, 3, H, W), sides divisible by the patch size.
        count: How many blocks are left.
    """
    grid = vit.patch_embed.dynamic_feat_size(x.shape[-2:])
    embedded = vit._pos_embed(vit.patch_embed(x))
    tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
    tokens = vit.norm_pre(tokens)
    depth = len(vit.blocks)
    ropes = list(rope) if rope is not None and getattr(vit, "rope_mixed", False) else [rope] * depth
    for block, own in zip(vit.blocks[: depth - count], ropes, strict=False):
        tokens = block(tokens) if own is None else block(tokens, rope=own)
    return QueryBlocks(
        tokens,
        grid,
        vit.num_prefix_tokens,
        vit.blocks[depth - count :],
        vit.norm,
        ropes[depth - count :],
        _autocast(x.device.type),
    )


def _autocast(device: str) -> torch.dtype | None:
    known = torch.amp.is_autocast_available(device)  # there is none for the meta device
    return torch.get_autocast_dtype(device) if known and torch.is_autocast_enabled(device) else None


def check_query_blocks(vit: Any, count: Any, depth: int) -> None:
    """Check that the last blocks of a backbone can be left to queries.

    Raises:
        ValueError: It is no such backbone, or has no final norm, or the number is none of its blocks'.
    """
    classes = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(vit).__mro__]
    if not {"timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva"} & set(classes):
        raise ValueError(f"query_blocks takes timm's VisionTransformer and Eva, not a {type(vit).__name__}")
    if type(count) is not int or not 1 <= count <= depth:
        raise ValueError(f"query_blocks={count!r} must be a number of the {depth} blocks, from 1 on")
    if isinstance(vit.norm, nn.Identity):
        raise ValueError("query_blocks needs the model's final norm, which predictions pass, and it has none")
