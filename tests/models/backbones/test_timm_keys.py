"""Weights in the format of those who trained them, under timm's names: nothing is left out without a word."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from apla_mm.models import APLAViT

SIZES = dict(depth=2, embed_dim=32, num_heads=2)


def drawn(name: str) -> APLAViT:
    """A model in which no two tensors are alike: what is exchanged shows."""
    torch.manual_seed(0)
    model = make(name, False)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make(name: str, pretrained: bool | str) -> APLAViT:
    return APLAViT(name, pretrained=pretrained, img_size=64, model_kwargs=SIZES, norm=True)


def as_dinov3(state: dict[str, Tensor], bias: Tensor) -> dict[str, Tensor]:
    """As DINOv3's own files have them."""
    renamed = {
        name.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma"): t
        for name, t in state.items()
        if not name.endswith(("q_bias", "v_bias", "k_bias"))
    }
    for i in range(2):
        renamed[f"blocks.{i}.attn.qkv.bias"] = bias.clone()
        renamed[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([torch.ones(32), torch.zeros(32), torch.ones(32)])
    return {**renamed, "mask_token": torch.zeros(1, 32), "rope_embed.periods": torch.ones(4)}


def test_dinov3_s_own_files(tmp_path: Path) -> None:
    name = "vit_small_patch16_dinov3"
    source = drawn(name)
    save_file(as_dinov3(source.vit.state_dict(), torch.zeros(96)), tmp_path / "dinov3.safetensors")
    loaded = make(name, str(tmp_path / "dinov3.safetensors"))
    loaded.init_weights()
    images = torch.randn(1, 3, 64, 96)
    torch.testing.assert_close(loaded.eval()(images), source.eval()(images), rtol=0, atol=0)


def test_biases_that_the_model_has_not_are_not_dropped(tmp_path: Path) -> None:
    """timm leaves them out: of some of DINOv3's models they are all zero, of others they are not."""
    bias = torch.linspace(-1, 1, 96)
    state = as_dinov3(make("vit_small_patch16_dinov3", False).vit.state_dict(), bias)
    save_file(state, tmp_path / "dinov3.safetensors")
    with pytest.raises(ValueError, match=r"biases of q, k and v that are not zero, .* the model has none.*_qkvb"):
        make("vit_small_patch16_dinov3", str(tmp_path / "dinov3.safetensors")).init_weights()
    loaded = make("vit_small_patch16_dinov3_qkvb", str(tmp_path / "dinov3.safetensors"))
    loaded.init_weights()
    own = loaded.vit.state_dict()
    assert torch.equal(own["blocks.1.attn.q_bias"], bias[:32]) and torch.equal(own["blocks.1.attn.v_bias"], bias[64:])


def test_perception_encoder_s_own_files(tmp_path: Path) -> None:
    name = "vit_pe_spatial_base_patch16_512"
    source = drawn(name)
    state = source.vit.state_dict()
    own = {
        "patch_embed.proj.weight": "conv1.weight",
        "patch_embed.proj.bias": "conv1.bias",
        "cls_token": "class_embedding",
        "pos_embed": "positional_embedding",
        "norm_pre": "ln_pre",
        "norm.": "ln_post.",
        "attn.qkv.weight": "attn.in_proj_weight",
        "attn.qkv.bias": "attn.in_proj_bias",
        "attn.proj": "attn.out_proj",
        "mlp.fc1": "mlp.c_fc",
        "mlp.fc2": "mlp.c_proj",
        "norm1": "ln_1",
        "norm2": "ln_2",
        "gamma_1": "ls_1.gamma",
        "gamma_2": "ls_2.gamma",
        "blocks.": "transformer.resblocks.",
    }
    renamed = {}
    for key, tensor in state.items():
        for ours, theirs in own.items():
            key = key.replace(ours, theirs)
        flat = key in ("positional_embedding", "class_embedding")
        renamed[key] = tensor.flatten(0, 1 if key == "positional_embedding" else -1) if flat else tensor
    save_file({key: tensor.clone() for key, tensor in renamed.items()}, tmp_path / "pe.safetensors")
    loaded = make(name, str(tmp_path / "pe.safetensors"))
    loaded.init_weights()
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(loaded.eval()(images), source.eval()(images), rtol=0, atol=0)
