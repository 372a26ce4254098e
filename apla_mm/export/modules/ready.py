"""Makes a plain model's parts computable by an exporter, in place and with equal results."""

from typing import Any

import torch
from torch import Tensor, nn

from ...models.backbones.apla_vit import APLAViT


class AdaptivePool(nn.Module):
    """``nn.AdaptiveAvgPool2d`` as two matrix products, for maps whose size an exporter does not know.

    Args:
        size: (height, width) of what it gives.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.size = size

    def forward(self, x: Tensor) -> Tensor:
        """Pool maps (B, C, H, W)."""
        rows, columns = (_shares(x, dim, count) for dim, count in zip((2, 3), self.size, strict=True))
        return rows @ x @ columns.T


def _shares(x: Tensor, dim: int, count: int) -> Tensor:
    """What share each of a side's pixels has in each value, (count, side)."""
    side = x.shape[dim]
    at = torch.arange(side, device=x.device)
    value = torch.arange(count, device=x.device)[:, None]
    first = torch.div(value * side, count, rounding_mode="floor")
    behind = torch.div((value + 1) * side + count - 1, count, rounding_mode="floor")
    inside = ((at >= first) & (at < behind)).to(x.dtype)
    return inside / inside.sum(1, keepdim=True)


def make_ready(model: nn.Module) -> None:
    """Replace adaptive average pooling, whose sizes exporters must know, in place."""
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.AdaptiveAvgPool2d:
                given: Any = child.output_size
                height, width = (given, given) if isinstance(given, int) else given
                if height is not None and width is not None:
                    setattr(module, name, AdaptivePool((height, width)))


def fix_positions(module: nn.Module, images: Tensor) -> None:
    """Store backbones' position embeddings for the one size that their images have, in place.

    timm resamples them in each forward, by an operator that ONNX lacks; for one size that is done once.

    Args:
        module: What is exported.
        images: As it is given them.
    """
    seen: dict[APLAViT, set[tuple[int, int]]] = {}

    def note(vit: Any, args: Any) -> None:
        height, width = args[0].shape[-2:]
        patch = vit.patch_size
        seen.setdefault(vit, set()).add((height + -height % patch[0], width + -width % patch[1]))

    hooks = [part.register_forward_pre_hook(note) for part in module.modules() if isinstance(part, APLAViT)]
    try:
        with torch.no_grad():
            module(images)
    finally:
        for hook in hooks:
            hook.remove()
    for part, sizes in seen.items():
        # one that takes a single size has a table of its own, which fits already
        if len(sizes) == 1 and part.img_size is None and hasattr(part.vit, "set_input_size"):
            part.vit.set_input_size(img_size=sizes.pop())
