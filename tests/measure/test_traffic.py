import json
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.nets import tiny_vit
from helpers.processes import run
from torch import distributed, nn

from apla_mm.measure import gradient_traffic
from apla_mm.method import adapt

SEGFORMER = "configs/seg/segformer_mit-b0_apla_8xb2-160k_ade20k-512x512.py"


def make_model() -> nn.Sequential:
    return nn.Sequential(OrderedDict(backbone=tiny_vit(num_classes=0), head=nn.Linear(32, 3)))


def loss(model: nn.Module) -> torch.Tensor:
    return model(torch.randn(2, 3, 32, 32)).square().mean()


def test_gradients_of_what_trains_are_reduced_and_no_others() -> None:
    model, head = make_model(), 3 * (32 + 1)
    backbone = sum(parameter.numel() for parameter in model.backbone.parameters())
    full = gradient_traffic(model, loss)
    assert (full.trained, full.bytes, full.of("backbone")) == (backbone + head, 4 * (backbone + head), 4 * backbone)
    adapt(model.backbone, r=5)
    model.head.requires_grad_(True)
    ours = gradient_traffic(model, loss)
    rows = 2 * 5 * (32 + 1)
    assert (ours.trained, ours.bytes, ours.of("backbone")) == (rows + head, 4 * (rows + head), 4 * rows)
    assert ours.of("head") == 4 * head and ours.of("back") == 0
    model.backbone.requires_grad_(False)
    assert gradient_traffic(model.double(), lambda m: m(torch.randn(2, 3, 32, 32).double()).mean()).bytes == 8 * head
    assert not distributed.is_initialized()


def test_large_gradients_are_reduced_in_parts() -> None:
    model = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)))
    traffic = gradient_traffic(model, lambda m: m(torch.randn(2, 1024)).mean())
    assert traffic.bytes == 16 * 4 * 1024 * 1025
    assert traffic.buckets == 4  # of 1, 7, 7 and 1 layers: DDP sends 1 MiB or more at first, then 25 MiB


def test_parameters_without_a_gradient_are_an_error() -> None:
    model = make_model()
    model.backbone.idle = nn.Linear(2, 2)
    names = "backbone.idle.weight, backbone.idle.bias"
    with pytest.raises(RuntimeError, match=rf"2 parameters that train get no gradient, such as {names}:"):
        gradient_traffic(model, loss)
    assert not distributed.is_initialized()


def test_tool_measures_a_config_as_it_is_and_in_full(tmp_path: Path) -> None:
    figures = tmp_path / "new" / "figures.json"
    done = run(ROOT / "tools/analysis_tools/traffic.py", SEGFORMER, "--full", "--json", figures, cwd=ROOT)
    ours, full = json.loads(figures.read_text())
    assert (ours["training"], full["training"]) == ("as it is", "full")
    for row in (ours, full):
        assert row["bytes"] == 4 * row["trained"] and 1 <= row["buckets"] <= 3
    head = full["bytes"] - full["backbone_bytes"]
    assert ours["bytes"] - ours["backbone_bytes"] == head
    # MiT-B0: blocks of 32, 64, 160 and 256 channels, two each, of which an eighth train
    assert ours["backbone_bytes"] == 4 * sum(2 * (width // 8) * (width + 1) for width in (32, 64, 160, 256))
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 4
    assert f"{ours['bytes'] / 1e6:.2f} ({ours['bytes'] / full['bytes']:.2%})" in lines[2]
