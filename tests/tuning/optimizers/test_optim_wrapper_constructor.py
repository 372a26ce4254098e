import uuid

import pytest
import torch
from mmengine.logging import MMLogger
from mmengine.optim import build_optim_wrapper
from torch import nn

from apla_mm.method import adapt
from apla_mm.models import APLAViT


def make_model():
    vit = APLAViT(
        "vit_tiny_patch16_224", pretrained=False, img_size=32, model_kwargs=dict(embed_dim=32, depth=2, num_heads=2)
    )
    return nn.ModuleDict({"backbone": vit, "decode_head": nn.Sequential(nn.Linear(32, 4), nn.LayerNorm(4))})


def groups(model, constructor, **paramwise):
    cfg = dict(
        type="OptimWrapper",
        optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1),
        constructor=constructor,
        paramwise_cfg=paramwise,
    )
    optimizer = build_optim_wrapper(model, cfg).optimizer
    names = {id(p): name for name, p in model.named_parameters()}
    return [({names[id(p)] for p in g["params"]}, g["lr"], g["weight_decay"]) for g in optimizer.param_groups]


def test_same_settings_as_the_default_for_what_trains_and_nothing_else():
    model = make_model()
    adapt(model["backbone"], r=3)
    rules = dict(norm_decay_mult=0.0, bias_decay_mult=0.0, custom_keys={"head.0": dict(lr_mult=10.0)})
    settings = {
        name: (lr, decay)
        for names, lr, decay in groups(model, "DefaultOptimWrapperConstructor", **rules)
        for name in names
    }
    merged = groups(model, "TrainableOptimWrapperConstructor", **rules)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert sorted(name for names, *_ in merged for name in names) == sorted(trained)
    for names, lr, decay in merged:
        assert {settings[name] for name in names} == {(lr, decay)}
    assert len(merged) == len({settings[name] for name in trained}) == 3
    rows = {name.rpartition(".")[2]: decay for names, _, decay in merged for name in names if "trained" in name}
    assert rows == {"weight": 0.1, "bias": 0.0}


def test_it_trains_and_logs_nothing_about_single_parameters(capfd):
    model = make_model()
    adapt(model["backbone"], r=3)
    logger = MMLogger.get_instance(uuid.uuid4().hex, log_level="INFO")
    logger.info("a logger that has been used")
    level = logger.level
    groups(model, "TrainableOptimWrapperConstructor", bias_decay_mult=0.0)
    output = "".join(capfd.readouterr())
    assert "skipped" not in output and "paramwise_options" not in output
    assert torch.is_grad_enabled() and logger.level == level
    groups(model, "DefaultOptimWrapperConstructor", bias_decay_mult=0.0)
    output = "".join(capfd.readouterr())
    assert "skipped" in output and "paramwise_options" in output


def test_a_part_has_a_learning_rate_of_its_own_and_multipliers_stay():
    model = make_model()
    rules = dict(
        part_lr=dict(backbone=1e-5),
        bias_lr_mult=2.0,
        custom_keys={"blocks.1": dict(lr_mult=0.5), "norm": dict(decay_mult=0)},
    )
    lr = {name: lr for names, lr, _ in groups(model, "TrainableOptimWrapperConstructor", **rules) for name in names}
    assert lr["backbone.vit.blocks.0.attn.proj.weight"] == pytest.approx(1e-5)
    assert lr["backbone.vit.blocks.0.attn.proj.bias"] == pytest.approx(2e-5)
    assert lr["backbone.vit.blocks.1.attn.proj.weight"] == pytest.approx(5e-6)
    assert lr["decode_head.0.weight"] == pytest.approx(1e-3) and lr["decode_head.0.bias"] == pytest.approx(2e-3)


def test_a_part_that_is_none_is_an_error():
    with pytest.raises(
        ValueError, match="part_lr names 'bakbone', and the parts of the model are 'backbone', 'decode_head'"
    ):
        groups(make_model(), "TrainableOptimWrapperConstructor", part_lr=dict(bakbone=1e-5))


def test_without_a_rule_what_is_frozen_is_left_out_too():
    model = make_model()
    adapt(model["backbone"], r=3)
    ((names, lr, decay),) = groups(model, "TrainableOptimWrapperConstructor")
    assert names == {name for name, p in model.named_parameters() if p.requires_grad} and (lr, decay) == (1e-3, 0.1)
    assert len(names) < len(list(model.parameters()))
