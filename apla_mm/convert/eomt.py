"""EoMT's published checkpoints, in transformers' format, for our EoMT."""

import re
from collections.abc import Mapping

import torch
from torch import Tensor

#: name in transformers -> ours, for whole names and for parts of a block
_PARTS = {
    "embeddings.cls_token": "backbone.vit.cls_token",
    "embeddings.register_tokens": "backbone.vit.reg_token",
    "embeddings.patch_embeddings.projection": "backbone.vit.patch_embed.proj",
    "layernorm": "backbone.vit.norm",
    "query": "{head}.query",
    "class_predictor": "{head}.cls_embed",
    "mask_head.fc1": "{head}.mask_embed.0",
    "mask_head.fc2": "{head}.mask_embed.2",
    "mask_head.fc3": "{head}.mask_embed.4",
}
_BLOCK = {
    "norm1": "norm1",
    "attention.out_proj": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "norm2": "norm2",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
    "layer_scale2.lambda1": "ls2.gamma",
}
_UPSCALE = {"conv1": "0", "conv2": "2", "layernorm2d": "3"}


def convert_eomt(state: Mapping[str, Tensor], head: str = "decode_head") -> dict[str, Tensor]:
    """Rename the weights of transformers' ``EomtForUniversalSegmentation``.

    Args:
        state: Its state dict.
        head: ``'decode_head'`` for a segmentor of mmseg, ``'panoptic_head'`` for a detector of mmdet.

    Returns:
        That of a model of ``APLAViT``, a timm ViT with register tokens, and ``EoMTHead``.

    Raises:
        ValueError: A weight is none of such a model, or parts of one are missing.
    """
    converted: dict[str, Tensor] = {}
    packed: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        if name in ("attn_mask_probs", "embeddings.position_ids") or name.startswith("criterion."):
            continue  # masks are off at the end of training
        if name == "embeddings.position_embeddings.weight":
            converted["backbone.vit.pos_embed"] = tensor[None]
        elif found := re.fullmatch(r"layers\.(\d+)\.attention\.([qkv])_proj\.(weight|bias)", name):
            packed.setdefault(f"backbone.vit.blocks.{found[1]}.attn.qkv.{found[3]}", {})[found[2]] = tensor
        else:
            converted[_renamed(name).format(head=head)] = tensor
    for name, parts in packed.items():
        if parts.keys() != {*"qkv"}:
            raise ValueError(f"of '{name}' the file has {sorted(parts)}, not q, k and v")
        converted[name] = torch.cat([parts["q"], parts["k"], parts["v"]])
    count = len({name.split(".")[1] for name in state if name.startswith("layers.")})
    probabilities = state.get("attn_mask_probs")
    if not count or probabilities is None:
        raise ValueError("these are no weights of EomtForUniversalSegmentation: layers or attn_mask_probs are missing")
    converted[f"{head}.mask_probability"] = torch.zeros_like(probabilities, dtype=torch.float32)
    return converted


def _renamed(name: str) -> str:
    module, _, kind = name.rpartition(".")
    if found := re.fullmatch(r"layers\.(\d+)\.(.+)", name):
        for own, ours in _BLOCK.items():
            if found[2] == own or found[2].rpartition(".")[0] == own:
                return f"backbone.vit.blocks.{found[1]}.{ours}" + ("" if found[2] == own else f".{kind}")
    if found := re.fullmatch(r"upscale_block\.block\.(\d+)\.(\w+)", module):
        return f"{{head}}.upscale.{found[1]}.{_UPSCALE[found[2]]}.{kind}"
    if name in _PARTS:
        return _PARTS[name]
    if module in _PARTS:
        return f"{_PARTS[module]}.{kind}"
    raise ValueError(f"'{name}' is no weight of EomtForUniversalSegmentation that is known here")
