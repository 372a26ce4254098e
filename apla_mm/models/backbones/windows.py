"""Attention in windows for plain ViTs: most blocks see a window of the image each, a few see all of it."""

from collections.abc import Collection, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class Windows:
    """Square windows of a grid of tokens.

    The grid is padded at its right and lower edge up to whole windows. Prefix tokens (class, registers) go with every
    window, since frozen attention leans on them, and are averaged when the windows are joined.

    Args:
        grid: Height and width of the grid.
        size: Side of a window.
        prefix: Number of tokens before those of the grid.
    """

    def __init__(self, grid: tuple[int, int], size: int, prefix: int = 0) -> None:
        self.grid, self.size, self.prefix = grid, size, prefix
        self.rows, self.columns = (-(-side // size) for side in grid)
        self.count = self.rows * self.columns
        self._pad = (self.columns * size - grid[1], self.rows * size - grid[0])

    def split(self, tokens: Tensor) -> Tensor:
        """(B, prefix + H * W, C) to (B * count, prefix + size ** 2, C), the windows of an image one after another."""
        prefix, tokens = tokens[:, : self.prefix], tokens[:, self.prefix :]
        batch, _, dims = tokens.shape
        tokens = F.pad(tokens.view(batch, *self.grid, dims), (0, 0, 0, self._pad[0], 0, self._pad[1]))
        tokens = tokens.view(batch, self.rows, self.size, self.columns, self.size, dims).transpose(2, 3)
        tokens = tokens.reshape(batch * self.count, self.size**2, dims)
        return torch.cat([prefix.repeat_interleave(self.count, 0), tokens], 1) if self.prefix else tokens

    def join(self, windows: Tensor) -> Tensor:
        """The inverse of :meth:`split`."""
        prefix, tokens = windows[:, : self.prefix], windows[:, self.prefix :]
        batch, dims = len(windows) // self.count, windows.shape[-1]
        tokens = tokens.reshape(batch, self.rows, self.columns, self.size, self.size, dims).transpose(2, 3)
        tokens = tokens.reshape(batch, self.rows * self.size, self.columns * self.size, dims)
        tokens = tokens[:, : self.grid[0], : self.grid[1]].reshape(batch, -1, dims)
        if not self.prefix:
            return tokens
        return torch.cat([prefix.view(batch, self.count, self.prefix, dims).mean(1), tokens], 1)

    def attn_mask(self, batch: int, device: torch.device) -> Tensor | None:
        """True where a token is no padding, (batch * count, 1, 1, prefix + size ** 2); None without padding."""
        if not any(self._pad):
            return None
        real = torch.ones(1, self.grid[0] * self.grid[1], 1, dtype=torch.bool, device=device)
        real = Windows(self.grid, self.size).split(real)[..., 0]
        return F.pad(real, (self.prefix, 0), value=True).repeat(batch, 1)[:, None, None]

    def split_rope(self, rope: Tensor, batch: int) -> Tensor:
        """A rotary embedding (H * W, D) or (heads, H * W, D) to (batch * count, 1 or heads, size ** 2, D)."""
        rope = rope if rope.ndim == 3 else rope[None]
        rope = Windows(self.grid, self.size).split(rope).unflatten(0, (-1, self.count)).transpose(0, 1)
        return rope.repeat(batch, 1, 1, 1)


def windowed_intermediates(
    vit: Any, x: Tensor, indices: Sequence[int], norm: bool, window_size: int, global_blocks: Collection[int]
) -> list[Tensor]:
    """What timm's ``forward_intermediates`` gives, with all but some blocks run on windows of the tokens.

    A run of such blocks works on the windows throughout, as everything in a block but attention treats each token by
    itself. (Stochastic depth then drops windows, not images.)

    Args:
        vit: A timm ``VisionTransformer`` or ``Eva`` made with ``dynamic_img_size=True``.
        x: Images, (B, 3, H, W), sides divisible by the patch size.
        indices: Blocks whose outputs are returned, ascending.
        norm: Apply the final norm to them.
        window_size: Side of a window in tokens.
        global_blocks: Blocks that see all tokens.

    Returns:
        Maps (B, C, H / patch, W / patch).
    """
    batch = len(x)
    grid = vit.patch_embed.dynamic_feat_size(x.shape[-2:])
    windows = Windows(grid, window_size, vit.num_prefix_tokens)
    embedded = vit._pos_embed(vit.patch_embed(x))
    tokens, rope = embedded if isinstance(embedded, tuple) else (embedded, None)
    tokens = vit.norm_pre(tokens)
    mask = windows.attn_mask(batch, x.device)
    shared_rope = rope is not None and not getattr(vit, "rope_mixed", False)
    window_rope = windows.split_rope(rope, batch) if shared_rope else None
    maps, split = [], False
    for i, block in enumerate(vit.blocks[: indices[-1] + 1]):
        if split and i in global_blocks:
            tokens, split = windows.join(tokens), False
        elif not split and i not in global_blocks:
            tokens, split = windows.split(tokens), True
        options: dict[str, Any] = {"attn_mask": mask} if split and mask is not None else {}
        if shared_rope:
            options["rope"] = window_rope if split else rope
        elif rope is not None:
            options["rope"] = windows.split_rope(rope[i], batch) if split else rope[i]
        tokens = block(tokens, **options)
        if i in indices:
            whole = windows.join(tokens) if split else tokens
            whole = vit.norm(whole) if norm else whole
            maps.append(whole[:, windows.prefix :].transpose(1, 2).unflatten(2, grid).contiguous())
    return maps


def check_windows(depth: int, window_size: Any, global_blocks: Any) -> None:
    """Check the choice of windows of a backbone with ``depth`` blocks.

    Raises:
        ValueError: The window size is no positive int, or a block does not exist.
    """
    if type(window_size) is not int or window_size < 1:
        raise ValueError(f"window_size={window_size!r} must be the side of a window in tokens, an int of at least 1")
    if not all(type(i) is int and 0 <= i < depth for i in global_blocks):
        raise ValueError(f"global_blocks={tuple(global_blocks)} must be blocks 0 to {depth - 1}")


def check_windows_fit(vit: Any) -> None:
    """Check that blocks of a backbone can be run on windows of its tokens.

    Raises:
        ValueError: They cannot: their positions belong to the whole image, or they have windows of their own.
    """
    classes = [f"{cls.__module__}.{cls.__qualname__}" for cls in type(vit).__mro__]
    if not {"timm.models.vision_transformer.VisionTransformer", "timm.models.eva.Eva"} & set(classes):
        raise ValueError(
            f"window_size takes timm's VisionTransformer and Eva; of a {type(vit).__name__} the positions belong to "
            "all tokens of an image, or the blocks have windows of their own: leave window_size out"
        )
