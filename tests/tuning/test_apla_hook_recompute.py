"""APLAHook(recompute=...) on models of mmseg, mmdet and mmpretrain: the same training with less memory."""

import pytest
import torch
from helpers.backbones import BACKBONES, SIZE, build, make_runner
from helpers.comparisons import assert_same
from helpers.optional import needs

from apla_mm.measure import SavedTensors
from apla_mm.method import adapt
from apla_mm.method.memory.recompute import MODES, set_recompute

pytestmark = pytest.mark.slow


def make(family: str) -> torch.nn.Module:
    scope, backbone, _ = BACKBONES[family]
    needs(scope)
    model = build(scope, backbone).backbone
    model.train()
    return model


@pytest.mark.parametrize("family", BACKBONES)
def test_gradients_are_equal_and_less_is_kept(family: str) -> None:
    model = make(family)
    adapt(model, r=4)
    x = torch.randn(2, 3, SIZE, SIZE)
    kept, gradients = {}, {}
    for mode in MODES:
        set_recompute(model, mode)
        model.zero_grad()
        torch.manual_seed(5)  # dropout and stochastic depth
        with SavedTensors(model.parameters()) as saved:
            maps = model(x)
        kept[mode] = saved.bytes
        sum(m.square().sum() for m in maps).backward()
        gradients[mode] = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    for mode in MODES[1:]:
        assert_same(gradients[mode], gradients["none"])
    assert sorted(kept, key=lambda mode: -kept[mode]) == list(MODES)


def test_hook_trains_to_the_same_weights(tmp_path) -> None:
    states = {}
    for mode in MODES:
        torch.manual_seed(0)
        model = build(*BACKBONES["mmseg ViT"][:2])
        runner = make_runner(model, tmp_path / mode, dict(r=3, recompute=mode), randomness=dict(seed=0))
        runner.train()
        states[mode] = model.state_dict()
    for mode in MODES[1:]:
        assert_same(states[mode], states["none"])


def test_activation_checkpointing_of_mmengine_is_refused(tmp_path) -> None:
    runner = make_runner(
        build(*BACKBONES["mmseg ViT"][:2]),
        tmp_path,
        dict(r=3),
    )
    runner.cfg.activation_checkpointing = ["backbone.layers.0"]
    with pytest.raises(ValueError, match=r"APLAHook\(r=..., recompute='block'\)"):
        runner.train()
