"""How many channels the maps of a backbone and a neck have, by their configs; nothing of them is built."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch

from ...models.backbones.image_features import VECTORS, width_of_vectors
from .problems import as_list, kind


class Vit(NamedTuple):
    """A timm ViT's sizes."""

    channels: int
    depth: int
    patch: tuple[int, int]


def timm_vit(backbone: Mapping[str, Any]) -> Vit | None:
    """The sizes of an APLAViT's model; None if timm cannot make it."""
    kwargs = backbone.get("model_kwargs") or {}
    try:
        return _timm_vit(str(backbone.get("model_name")), tuple(sorted(kwargs.items())))
    except (RuntimeError, TypeError, ValueError, AttributeError, NotImplementedError):  # said when it is built
        return None


@lru_cache(maxsize=8)
def _timm_vit(name: str, kwargs: tuple[tuple[str, Any], ...]) -> Vit:
    with torch.device("meta"):
        vit: Any = timm.create_model(name, num_classes=0, **dict(kwargs))
    return Vit(vit.embed_dim, len(vit.blocks), tuple(vit.patch_embed.patch_size))


def patch_size(backbone: Mapping[str, Any]) -> tuple[int, int] | None:
    """The patch of a plain ViT; None of other backbones."""
    if kind(backbone) == "APLAViT":
        vit = timm_vit(backbone)
        return None if vit is None else vit.patch
    size = backbone.get("patch_size", 16)
    return (size, size) if kind(backbone) == "VisionTransformer" and isinstance(size, int) else None


def depth_of(backbone: Mapping[str, Any]) -> int | None:
    """How many outputs a backbone has to choose from; None if that is not known."""
    name = kind(backbone)
    if name == "APLAViT":
        vit = timm_vit(backbone)
        return None if vit is None else vit.depth
    if name == "VisionTransformer":
        return backbone.get("num_layers", 12)
    if name in ("SwinTransformer", "MixVisionTransformer"):
        return len(backbone.get("depths", backbone.get("num_layers", (0,) * 4)))
    return backbone.get("num_stages", 4) if name in _RESNETS else None


_RESNETS = {"ResNet", "ResNetV1c", "ResNetV1d", "ResNeXt"}


def maps_of_backbone(backbone: Mapping[str, Any]) -> list[int] | None:
    """The channels of each map of a backbone; None if they are not known."""
    name, scope = kind(backbone), str(backbone.get("type")).rpartition(".")[0]
    if scope not in ("", "mmseg", "mmdet"):
        return None
    every = (0, 1, 2, 3)
    if name == "APLAViT":
        vit = timm_vit(backbone)
        return None if vit is None else [vit.channels] * len(as_list(backbone.get("out_indices", (-1,))))
    if name == "VisionTransformer":
        return [backbone.get("embed_dims", 768)] * len(as_list(backbone.get("out_indices", -1)))
    if name == "SwinTransformer":
        return [backbone.get("embed_dims", 96) * 2**i for i in backbone.get("out_indices", every)]
    if name == "MixVisionTransformer":
        heads = backbone.get("num_heads", [1, 2, 4, 8])
        return [backbone.get("embed_dims", 64) * heads[i] for i in backbone.get("out_indices", every) if i < len(heads)]
    if name in _RESNETS and isinstance(backbone.get("depth"), int):
        widest = backbone.get("base_channels", 64) * (1 if backbone["depth"] < 50 else 4)
        return [widest * 2**i for i in backbone.get("out_indices", every)]
    return None


def width_of_vectors_of(backbone: Mapping[str, Any]) -> int | None:
    """How many values an APLAViT gives for an image; None if that is not known, or it gives maps."""
    output, vit = backbone.get("output", "maps"), timm_vit(backbone) if kind(backbone) == "APLAViT" else None
    if output not in VECTORS or vit is None:
        return None
    return width_of_vectors(output, len(as_list(backbone.get("out_indices", (-1,)))), vit.channels)


def maps_of_neck(neck: Mapping[str, Any]) -> list[int] | None:
    """The channels of each map of a neck; None if they are not known."""
    out, count = neck.get("out_channels"), neck.get("num_outs")
    if kind(neck) == "SimpleFeaturePyramid":
        out, count = out or 256, count or len(neck.get("scale_factors", (4, 2, 1, 0.5)))
    known = kind(neck) in ("FPN", "ChannelMapper", "SimpleFeaturePyramid", "MultiLevelNeck")
    if kind(neck) == "MultiLevelNeck":
        count = len(neck.get("scales", (0.5, 1, 2, 4)))
    if kind(neck) == "ChannelMapper":
        count = count or len(as_list(neck.get("in_channels")))
    return [out] * count if known and isinstance(out, int) and isinstance(count, int) else None


def strides_of_backbone(backbone: Mapping[str, Any]) -> list[float] | None:
    """How many pixels a step of each map of a backbone is; None if that is not known."""
    name, patch = kind(backbone), patch_size(backbone)
    if patch is not None:
        maps = maps_of_backbone(backbone)
        return None if maps is None or patch[0] != patch[1] else [patch[0]] * len(maps)
    first = backbone.get("patch_size", 4)
    stages = isinstance(first, int) and not {"strides", "dilations"} & set(backbone)
    if stages and name in (*_RESNETS, "SwinTransformer", "MixVisionTransformer"):
        return [first * 2**i for i in backbone.get("out_indices", (0, 1, 2, 3))]
    return None


def strides_of_neck(neck: Mapping[str, Any], given: Sequence[float]) -> list[float] | None:
    """How many pixels a step of each map of a neck is; None if that is not known."""
    count, name = len(maps_of_neck(neck) or ()), kind(neck)
    if not count or name == "MultiLevelNeck" or neck.get("end_level", -1) != -1:
        return None
    if name == "SimpleFeaturePyramid":
        strides = [given[-1] / factor for factor in neck.get("scale_factors", (4, 2, 1, 0.5))]
    else:
        strides = list(given[neck.get("start_level", 0) if name == "FPN" else 0 :])
    while len(strides) < count:
        strides.append(2 * strides[-1])
    return strides[:count]
