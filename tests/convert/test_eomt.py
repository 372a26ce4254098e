"""Weights of transformers' EoMT under our names; that they compute the same is tested beside the head."""

from pathlib import Path

import pytest
import torch
from helpers.comparisons import assert_same
from helpers.tools import CONVERTERS, call_tool
from safetensors.torch import save_file
from transformers import EomtConfig, EomtForUniversalSegmentation

from apla_mm.convert.eomt import convert_eomt
from apla_mm.loading.checkpoint_reader import read_checkpoint


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


def test_the_tool_writes_a_checkpoint(state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "model.safetensors")
    call_tool(CONVERTERS / "import_eomt.py", tmp_path / "model.safetensors", tmp_path / "out.pth")
    assert_same(read_checkpoint(tmp_path / "out.pth")["state_dict"], convert_eomt(state))
    with pytest.raises(SystemExit, match=r"out\.pth"):
        call_tool(CONVERTERS / "import_eomt.py", tmp_path / "model.safetensors", tmp_path / "out.pth")
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(SystemExit, match=r"other\.safetensors': 'other' is no weight"):
        call_tool(CONVERTERS / "import_eomt.py", tmp_path / "other.safetensors", tmp_path / "new.pth")
