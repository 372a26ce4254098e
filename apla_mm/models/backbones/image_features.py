"""One vector for each image out of a timm ViT: its class token, the mean of its patches, or both."""

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CLASS_TOKEN, MEAN, BOTH = "cls_token", "mean", "cls_token+mean"
VECTORS = (CLASS_TOKEN, MEAN, BOTH)


def check_vectors(vit: Any, output: str) -> None:
    """Check that a model has what its vectors are made of.

    Args:
        vit: A timm ViT.
        output: One of ``VECTORS``.

    Raises:
        ValueError: It has no class token, or does not give it.
    """
    if output == MEAN:
        return
    embed = getattr(vit, "embeds", vit)  # NaFlexViT's tokens are in a part of their own
    if getattr(embed, "cls_token", None) is None or not getattr(vit, "num_prefix_tokens", 0):
        raise ValueError(f"output='{output}' needs a class token, and it has none: use output='{MEAN}'")
    if "return_prefix_tokens" not in inspect.signature(vit.forward_intermediates).parameters:
        raise ValueError(f"output='{output}' needs the class token of its blocks, which it keeps: use output='{MEAN}'")


def width_of_vectors(output: str, maps: int, channels: int) -> int:
    """How many values :func:`image_vectors` gives for an image.

    Args:
        output: One of ``VECTORS``.
        maps: Blocks whose outputs are taken.
        channels: Of each.
    """
    return (maps + (output == BOTH)) * channels


def norm_of_vectors(vit: nn.Module, output: str) -> nn.Module:
    """The norm that timm applies to the mean of the patches, where the model has it in place of one of all tokens."""
    norm = getattr(vit, "fc_norm", None)
    return norm if output == MEAN and isinstance(norm, nn.Module) else nn.Identity()


def image_vectors(vit: Any, x: Tensor, indices: Sequence[int], norm: bool, output: str) -> Tensor:
    """Run a model up to its last block, and make a vector of the tokens of each image.

    With ``'cls_token+mean'`` and the last four blocks it is what DINOv2's linear classifiers take (arXiv 2304.07193):
    the class token of each block, then the mean of the last one's patches.

    Args:
        vit: A timm ViT.
        x: Images, (B, 3, H, W), multiples of the patch.
        indices: Blocks whose outputs are taken, ascending.
        norm: Whether to apply the final norm.
        output: One of ``VECTORS``.

    Returns:
        (B, width_of_vectors(...)).
    """
    prefix = {} if output == MEAN else dict(return_prefix_tokens=True)
    found = vit.forward_intermediates(x, indices=indices, norm=norm, stop_early=True, intermediates_only=True, **prefix)
    if output == MEAN:
        after = norm_of_vectors(vit, output)
        return torch.cat([after(patches.mean((2, 3))) for patches in found], 1)
    vectors = [tokens[:, 0] for _, tokens in found]
    if output == BOTH:
        vectors.append(found[-1][0].mean((2, 3)))
    return torch.cat(vectors, 1)
