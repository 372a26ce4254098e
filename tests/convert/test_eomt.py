"""Weights of transformers' EoMT under our names; that they compute the same is tested beside the head."""

import pytest
import torch
from transformers import EomtConfig, EomtForUniversalSegmentation

from apla_mm.convert.eomt import convert_eomt


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    config = EomtConfig(
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        num_blocks=1,
        num_queries=3,
        num_labels=2,
    )
    return EomtForUniversalSegmentation(config).state_dict()


def test_every_weight_has_a_place_and_masks_are_off(state: dict[str, torch.Tensor]) -> None:
    converted = convert_eomt(state, "panoptic_head")
    assert {name.split(".")[0] for name in converted} == {"backbone", "panoptic_head"}
    numbers = sum(t.numel() for name, t in state.items() if not name.startswith("criterion."))
    assert sum(t.numel() for t in converted.values()) == numbers
    assert converted["panoptic_head.mask_probability"].tolist() == [0.0]
    q, k, v = (state[f"layers.1.attention.{part}_proj.weight"] for part in "qkv")
    assert torch.equal(converted["backbone.vit.blocks.1.attn.qkv.weight"], torch.cat([q, k, v]))


def test_other_weights_are_refused(state: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="'something.weight' is no weight"):
        convert_eomt({**state, "something.weight": torch.ones(1)})
    with pytest.raises(ValueError, match=r"has \['k', 'v'\], not q, k and v"):
        convert_eomt({k: v for k, v in state.items() if k != "layers.0.attention.q_proj.bias"})
    with pytest.raises(ValueError, match="no weights of EomtForUniversalSegmentation"):
        convert_eomt({})
