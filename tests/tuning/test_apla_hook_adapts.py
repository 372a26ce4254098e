"""APLAHook on models of mmseg, mmdet and mmpretrain: adapted, trained, saved, loaded by the plain model."""

import copy

import pytest
import torch
from helpers.backbones import BACKBONES, SIZE, build, make_runner
from helpers.comparisons import assert_same, changed_rows
from helpers.data_sets import Noise
from helpers.optional import needs
from helpers.processes import run_ranks
from mmengine.dataset import DefaultSampler
from mmengine.hooks import Hook

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.method import PartialLinear, find_projections

pytestmark = pytest.mark.slow


class Start(Hook):
    """Keeps the weights that training starts from, after init_weights."""

    def before_train(self, runner):
        self.state = copy.deepcopy(runner.model.state_dict())


@pytest.fixture(params=BACKBONES, ids=lambda name: name.replace(" ", "-"))
def family(request):
    scope, backbone, count = BACKBONES[request.param]
    needs(scope)
    return scope, copy.deepcopy(backbone), count


def load(model, state):
    """Keys that do not fit; mmpretrain's SwinV2 misses some of its own."""
    return model.load_state_dict(state, strict=False)


def test_every_family_trains_its_channels_alone_and_saves_a_plain_checkpoint(family, tmp_path):
    scope, backbone, count = family
    model = build(scope, backbone)
    plain = copy.deepcopy(model)
    projections = find_projections(plain.backbone)
    assert len(projections) == count
    runner = make_runner(model, tmp_path, dict(r=3))
    start = Start()
    runner.register_hook(start)
    runner.train()

    saved = read_checkpoint(str(tmp_path / "iter_3.pth"))["state_dict"]
    assert [(k, v.shape, v.dtype) for k, v in saved.items()] == [
        (k, v.shape, v.dtype) for k, v in plain.state_dict().items()
    ]
    changed = changed_rows(start.state, saved)
    expected = {f"backbone.{p.name}.{part}" for p in projections for part in ("weight", "bias")}
    heads = {key for key in saved if key.startswith("head")}
    assert set(changed) == expected | heads
    assert all(len(changed[key]) == 3 for key in expected)

    assert load(plain, saved) == load(copy.deepcopy(plain), plain.state_dict())
    x = torch.randn(2, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_optimizer_holds_exactly_what_trains_with_the_configs_settings(tmp_path):
    scope, backbone, _ = BACKBONES["mmseg Swin"]
    model = build(scope, backbone)
    runner = make_runner(
        model,
        tmp_path,
        dict(r=3, train_norm=True),
        optim_wrapper=dict(
            optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1),
            paramwise_cfg=dict(
                bias_decay_mult=0.0,
                norm_decay_mult=0.5,
                custom_keys={"head": dict(lr_mult=10.0), "w_msa": dict(lr_mult=2.0)},
            ),
        ),
    )
    runner.train()
    held = {id(p): group for group in runner.optim_wrapper.optimizer.param_groups for p in group["params"]}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {id(p) for p in trained.values()} == set(held)
    assert sum(len(g["params"]) for g in runner.optim_wrapper.optimizer.param_groups) == len(trained)

    def settings(name):
        group = held[id(trained[name])]
        return group["lr"], group["weight_decay"]

    proj = "backbone.stages.0.blocks.0.attn.w_msa.proj.trained"
    assert settings(f"{proj}.weight") == (pytest.approx(0.02), pytest.approx(0.1))
    assert settings(f"{proj}.bias") == (pytest.approx(0.02), pytest.approx(0.1))  # mmengine: a custom key comes first
    assert settings("backbone.stages.0.blocks.0.norm1.weight") == (pytest.approx(0.01), pytest.approx(0.05))
    assert settings("head.weight") == (pytest.approx(0.1), pytest.approx(0.1))


def test_what_else_trains(tmp_path):
    scope, backbone, _ = BACKBONES["mmseg ViT"]
    model = build(scope, backbone)
    runner = make_runner(
        model, tmp_path, dict(r=3, train_norm=True, train_bias=True, train_pos_embed=True, trainable=["patch_embed.*"])
    )
    start = Start()
    runner.register_hook(start)
    runner.train()
    changed = changed_rows(start.state, model.state_dict())
    names = {key.removeprefix("backbone.") for key in changed if key.startswith("backbone.")}
    assert {"pos_embed", "patch_embed.projection.weight", "layers.0.ln1.weight", "layers.0.ffn.layers.1.bias"} < names
    assert "layers.0.ffn.layers.1.weight" not in names
    assert len(changed["backbone.layers.0.attn.attn.out_proj.bias"]) == 3


@pytest.mark.parametrize("frozen_eval", [False, True])
def test_frozen_parts_in_training(tmp_path, frozen_eval):
    scope, backbone, _ = BACKBONES["mmseg ViT"]
    model = build(scope, dict(backbone, drop_rate=0.3, drop_path_rate=0.3))
    runner = make_runner(model, tmp_path, dict(r=3, frozen_eval=frozen_eval))
    runner.train()
    modes = {type(m).__name__: m.training for m in model.backbone.modules()}
    assert modes["Dropout"] is not frozen_eval
    assert modes["DropPath"] is True
    assert model.head.training is True


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (dict(r=0), "target 'backbone': r=0 does not fit projection 'layers.0.attn.attn.out_proj'"),
        (dict(r=10**6), "r=1000000 does not fit"),
        (dict(r="half"), "r='half' does not fit"),
        (dict(r=3, target="backbones"), "the model has no part 'backbones'; it has .*backbone, head"),
        (dict(r=3, target="backbone.layer"), "backbone has no part 'layer'"),
        (dict(r=3, target="head"), "target 'head': no attention was found in torch.nn.modules.linear.Linear"),
        (dict(r=3, trainable=["neck.*"]), "'neck.*' matches no parameter"),
    ],
)
def test_bad_input(tmp_path, hook, message):
    scope, backbone, _ = BACKBONES["mmseg ViT"]
    with pytest.raises(ValueError, match=message):
        make_runner(build(scope, backbone), tmp_path, hook).train()


def test_a_convolutional_backbone_is_refused(tmp_path):
    model = build(
        "mmseg", dict(type="ResNetV1c", depth=18, num_stages=2, strides=(1, 2), dilations=(1, 1), out_indices=(1,))
    )
    with pytest.raises(ValueError, match="target 'backbone': no attention was found in mmseg.*ResNetV1c"):
        make_runner(model, tmp_path, dict(r=3)).train()


def test_testing_needs_no_adapting(tmp_path):
    scope, backbone, _ = BACKBONES["mmseg ViT"]
    model = build(scope, backbone)
    make_runner(model, tmp_path, dict(r=3)).train()
    fresh = build(scope, backbone)
    runner = make_runner(
        fresh,
        tmp_path / "test",
        dict(r=3),
        load_from=str(tmp_path / "iter_3.pth"),
        test_dataloader=dict(
            dataset=Noise(size=SIZE),
            sampler=dict(type=DefaultSampler, shuffle=False),
            batch_size=4,
            collate_fn=dict(type="default_collate"),
        ),
        test_cfg=dict(),
        test_evaluator=dict(type="DumpResults", out_file_path=str(tmp_path / "out.pkl")),
    )
    runner.call_hook("before_run")
    runner.load_or_resume()
    assert not any(isinstance(m, PartialLinear) for m in fresh.modules())
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.no_grad():
        torch.testing.assert_close(fresh.eval()(x), model.eval()(x), rtol=1e-5, atol=1e-5)


def test_two_processes_with_a_wrapped_model(tmp_path):
    code = """
        import os, pathlib, torch
        from helpers.backbones import BACKBONES, build, make_runner
        rank = os.environ["RANK"]
        torch.distributed.init_process_group("gloo")  # mmengine's own start wants a GPU
        scope, backbone, _ = BACKBONES["mmseg ViT"]
        model = build(scope, backbone)
        runner = make_runner(
            model, pathlib.Path("work").absolute(), dict(r=3), launcher="pytorch",
            randomness=dict(seed=0),
            cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),
        )
        assert type(runner.model).__name__ == "MMDistributedDataParallel"
        runner.train()
        assert type(runner.model).__name__ == "MMDistributedDataParallel"
        channels = {n: m.channels for n, m in model.named_modules() if n.endswith("trained")}
        torch.save((model.state_dict(), channels), f"rank{rank}.pth")
    """
    run_ranks(code, tmp_path)
    (state, channels), other = (torch.load(tmp_path / f"rank{r}.pth") for r in (0, 1))
    assert len(channels) == 3
    assert_same((state, channels), other)
    scope, backbone, _ = BACKBONES["mmseg ViT"]
    assert changed_rows(build(scope, backbone).state_dict(), state)


def test_a_frozen_target_leaves_its_neighbours_to_train(tmp_path):
    scope, backbone, _ = BACKBONES["mmseg ViT"]
    model = build(scope, backbone)
    runner = make_runner(model, tmp_path, dict(blocks="none"))
    start = Start()
    runner.register_hook(start)
    runner.train()
    changed = changed_rows(start.state, model.state_dict())
    assert changed and not any(key.startswith("backbone.") for key in changed)


def test_all_biases_alone_train(tmp_path):
    scope, backbone, _ = BACKBONES["mmseg ViT"]
    model = build(scope, backbone)
    runner = make_runner(model, tmp_path, dict(blocks="none", train_bias=True))
    start = Start()
    runner.register_hook(start)
    runner.train()
    changed = {key for key in changed_rows(start.state, model.state_dict()) if key.startswith("backbone.")}
    assert "backbone.layers.0.attn.attn.out_proj.bias" in changed and all(key.endswith("bias") for key in changed)
