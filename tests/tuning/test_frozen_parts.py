"""Models that freeze parts of themselves: what is said to train does, or the run is refused before it trains."""

import copy

import pytest
import torch
from helpers.backbones import BACKBONES, SIZE, Model, build, make_runner
from helpers.fixtures import TinyClassifier
from helpers.nets import tiny_vit
from helpers.optional import needs
from helpers.processes import run_ranks
from mmengine.registry import MODELS
from torch import nn

import apla_mm
from apla_mm.method import PartialLinear
from apla_mm.tuning.frozen_parts import check_train_keeps, requires_grad_of

pytestmark = pytest.mark.slow

SWINS = {
    "mmseg": BACKBONES["mmseg Swin"],
    "mmdet": BACKBONES["mmdet Swin"],
    "mmpretrain": (
        "mmpretrain",
        dict(
            type="mmpretrain.SwinTransformer", img_size=SIZE, window_size=4, out_indices=(0, 1),
            arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4]),
        ),
        4,
    ),
}  # fmt: skip
VIT = BACKBONES["mmpretrain ViT"][1]


def of(scope, backbone, **more):
    needs(scope)
    return build(scope, {**copy.deepcopy(backbone), **more})


def check_refused(model, tmp_path, hook, *messages, error=ValueError):
    """Refused before anything was changed."""
    before = requires_grad_of(model), [(type(m), m.training) for m in model.modules()]
    with pytest.raises(error) as raised:
        make_runner(model, tmp_path, hook).train()
    for message in messages:
        assert message in str(raised.value)
    assert (requires_grad_of(model), [(type(m), m.training) for m in model.modules()]) == before
    assert not list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("family", SWINS)
def test_frozen_stages_that_would_train_are_refused(tmp_path, family):
    scope, backbone, _ = SWINS[family]
    first = 0 if family == "mmpretrain" else 1  # how many are frozen, or the last that is
    for stages, left in ((first, [2, 3]), (first + 1, None)):
        model = of(scope, backbone, frozen_stages=stages)
        cures = [f"set frozen_stages=-1 of SwinTransformer, where it is {stages}"]
        cures += [f"by blocks={left}"] if left else []
        check_refused(
            model, tmp_path / str(stages), dict(r=3), "target 'backbone': SwinTransformer has frozen",
            "w_msa.proj.weight", *cures,
        )  # fmt: skip


@pytest.mark.parametrize("family", SWINS)
@pytest.mark.parametrize(
    ("settings", "hook"),
    [
        (dict(frozen_stages=1), dict(r=3, blocks=2)),
        (dict(frozen_stages=0), dict(r=3)),
        (dict(frozen_stages=2), dict(blocks="none")),
        (dict(norm_eval=True), dict(r=3)),
        (dict(with_cp=True), dict(r=3)),
    ],
    ids=lambda options: "-".join(f"{k}={v}" for k, v in options.items()),
)
def test_what_is_said_to_train_does(tmp_path, family, settings, hook):
    scope, backbone, _ = SWINS[family]
    if "norm_eval" in settings and scope != "mmpretrain":
        pytest.skip("has no norm_eval")
    if "frozen_stages" in settings and scope == "mmpretrain":
        settings = dict(frozen_stages=settings["frozen_stages"] - 1)  # there it is the last that is frozen
    model = of(scope, backbone, **settings)
    runner = make_runner(model, tmp_path, hook)
    seen = []

    def see(*_):
        seen.append([name for name, p in model.named_parameters() if p.requires_grad])

    model.register_forward_hook(see)
    before = copy.deepcopy(model.state_dict())
    runner.train()
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    assert seen == [trained] * 3
    moved = {key for key, tensor in model.state_dict().items() if not torch.equal(tensor, before[key])}
    assert {name.replace(".trained.", ".") for name in trained} <= moved
    held = {id(p) for g in runner.optim_wrapper.optimizer.param_groups for p in g["params"]}
    assert held == {id(p) for p in model.parameters() if p.requires_grad}


def test_a_vit_that_was_frozen_when_it_was_built_is_not_thawed(tmp_path):
    model = of("mmpretrain", VIT, frozen_stages=2)
    check_refused(model, tmp_path / "all", dict(r=3), "set frozen_stages=-1 of VisionTransformer, where it is 2")
    model = of("mmpretrain", VIT, frozen_stages=1)
    check_refused(model, tmp_path / "some", dict(r=3), "frozen_stages=-1", "or adapt those alone", "by blocks=[1]")
    check_refused(
        model, tmp_path / "more", dict(r=3, blocks=[1], train_pos_embed=True), "train_pos_embed=True, and VisionTrans",
        "has frozen all of its own itself, 'pos_embed': set frozen_stages=-1",
    )  # fmt: skip
    check_refused(
        model, tmp_path / "pattern", dict(r=3, blocks=[1], trainable=["*.ln1.*"]), "set frozen_stages=-1",
        "or have no pattern of trainable match 'layers.0.ln1.weight'",
    )  # fmt: skip
    make_runner(model, tmp_path / "rest", dict(r=3, blocks=[1])).train()
    assert {n for n, p in model.backbone.named_parameters() if p.requires_grad} == {
        f"layers.1.attn.proj.trained.{kind}" for kind in ("weight", "bias")
    }


def test_kinds_that_train_are_of_what_the_model_leaves_to_train(tmp_path):
    for scope, backbone, blocks in (("mmpretrain", VIT, [1]), (*SWINS["mmseg"][:2], [2, 3])):
        model = of(scope, backbone, frozen_stages=1)
        runner = make_runner(model, tmp_path / scope, dict(r=3, blocks=blocks, train_norm=True))
        runner.train()
        norms = {n: p.requires_grad for n, p in model.backbone.named_parameters() if "ln1" in n or "norm1" in n}
        assert set(norms.values()) == {True, False}
        log = "".join(path.read_text() for path in (tmp_path / scope).rglob("*.log"))
        assert "of the kinds that train stay frozen, as the model has frozen them itself: '" in log


def test_moco_v3(tmp_path):
    needs("mmpretrain")
    vit = dict(VIT, type="mmpretrain.MoCoV3ViT")
    model = of("mmpretrain", vit, frozen_stages=2, norm_eval=True)
    check_refused(model, tmp_path / "all", dict(r=3), "set frozen_stages=-1 of MoCoV3ViT, where it is 2")
    model = of("mmpretrain", vit, stop_grad_conv1=True)
    make_runner(model, tmp_path / "stem", dict(r=3)).train()
    # its init_weights, which runs after the hook, freezes the position embedding
    model = of("mmpretrain", vit)
    runner = make_runner(model, tmp_path / "late", dict(r=3, train_pos_embed=True))
    with pytest.raises(
        ValueError, match=r"since weights were initialised and loaded: .* freezes 1 .*'backbone.pos_emb"
    ):
        runner.train()


@pytest.mark.parametrize("hook", [dict(r=3), dict(blocks="none")])
def test_lora_is_not_frozen(tmp_path, hook):
    lora = dict(type="mmpretrain.LoRAModel", module=VIT, rank=2, targets=[dict(type="qkv")])
    check_refused(
        of("mmpretrain", lora), tmp_path, hook, "LoRAModel has frozen all of its projections itself", "lora_down",
        "give APLAHook the plain model in place of LoRAModel",
    )  # fmt: skip


def test_lora_beside_apla_that_adapts_nothing(tmp_path):
    lora = dict(type="mmpretrain.LoRAModel", module=VIT, rank=2, targets=[dict(type="qkv")])
    model = of("mmpretrain", lora)
    make_runner(model, tmp_path, dict(blocks="none", trainable=["*.lora_*"])).train()
    assert {n for n, p in model.backbone.named_parameters() if not p.requires_grad and "lora_" in n} == set()


class Freezing(nn.Module):
    """A backbone that does something to what trains at a certain time."""

    def __init__(self, when, to=False, what="blocks.0.attn.proj", freeze_proj=None):
        super().__init__()
        self.vit = tiny_vit(num_classes=0)
        self.when, self.to, self.what = when, to, what
        if freeze_proj is not None:
            self.freeze_proj = freeze_proj

    def _act(self, now):
        if now == self.when:
            for name, parameter in self.vit.named_parameters():
                if name.startswith(self.what):
                    parameter.requires_grad = self.to

    def train(self, mode=True):
        super().train(mode)
        self._act("train" if mode else "eval")
        return self

    def init_weights(self):
        self._act("init_weights")

    def forward(self, x):
        self._act("forward")
        return self.vit.forward_intermediates(x, indices=[1], intermediates_only=True)


@pytest.fixture
def freezing(monkeypatch):
    """Builds a model with such a backbone."""
    monkeypatch.setattr("helpers.backbones.SIZE", 32)  # of tiny_vit
    MODELS.register_module(name="Freezing", module=Freezing, force=True)
    return lambda **options: build("mmseg", dict(type="mmengine.Freezing", **options))


@pytest.mark.parametrize(
    ("options", "messages"),
    [
        (dict(when="train"), ["target 'backbone': Freezing has frozen itself 2 parameters", "blocks.0.attn.proj.w"]),
        (dict(when="train", freeze_proj=True), ["set freeze_proj=False of Freezing"]),
        (dict(when="eval"), ["Freezing.train() of 'backbone'", "freezes 2 parameters that train", "change Freezing"]),
        (dict(when="eval", freeze_proj=1), ["set freeze_proj=-1 of 'backbone', Freezing, where it is 1"]),
        (dict(when="train", to=True, what="blocks.0.mlp"), ["Freezing.train() of 'backb", "has 4 frozen parameters"]),
        (dict(when="train", to=True), ["has 2 frozen parameters train: 'backbone.vit.blocks.0.attn.proj.weight'"]),
    ],
)  # fmt: skip
def test_train_that_changes_what_trains(tmp_path, freezing, options, messages):
    check_refused(freezing(**options), tmp_path, dict(r=3), *messages)


@pytest.mark.parametrize(
    ("when", "message"),
    [
        ("init_weights", "since weights were initialised and loaded: the model or a hook freezes 2 parameters"),
        ("forward", "since iteration 1 began: the model or a hook freezes 2 parameters"),
    ],
)
def test_what_is_frozen_later(tmp_path, freezing, when, message):
    model = freezing(when="never")
    model.backbone.when = when
    with pytest.raises(ValueError, match=f"{message} that train: 'backbone.vit.blocks.0.attn.proj.weight'"):
        make_runner(model, tmp_path, dict(r=3)).train()
    assert not list(tmp_path.glob("*.pth"))


def test_a_backbone_that_adapted_itself(tmp_path):
    for when, what, message in (
        (
            "train",
            "vit.blocks.1.attn.proj.trained",
            r"train\(\) of 'backbone', .* freezes 2 .*'backbone.vit.blocks.1.attn",
        ),
        ("forward", "vit.blocks.1.attn.proj.trained", "since iteration 1 began"),
        ("train", "vit.norm", None),  # it is frozen anyway
    ):
        model = TinyClassifier(apla=dict(r=8))
        plain = type(model.backbone)

        class Own(plain):
            def _act(self):
                for name, parameter in self.named_parameters():
                    if name.startswith(what):  # noqa: B023
                        parameter.requires_grad = False

            def train(self, mode=True):
                super().train(mode)
                if when == "train":  # noqa: B023
                    self._act()

            def forward(self, x):
                if when == "forward":  # noqa: B023
                    self._act()
                return super().forward(x)

        model.backbone.__class__ = Own
        runner = make_runner(model, tmp_path / f"{when}{what}", {})
        if message is None:
            runner.train()
            continue
        with pytest.raises(ValueError, match=message):
            runner.train()


class FreezesHead(Model):
    """Its head has a part that stays frozen."""

    freeze_head = True

    def train(self, mode=True):
        super().train(mode)
        if self.freeze_head:
            self.head_norm.requires_grad_(False)
        return self


@pytest.mark.parametrize("hook", [dict(r=3), {}])
def test_heads_may_freeze_themselves(tmp_path, hook):
    model = of("mmseg", BACKBONES["mmseg ViT"][1])
    model.__class__ = FreezesHead
    runner = make_runner(model, tmp_path, hook)
    before = copy.deepcopy(model.state_dict())
    runner.train()
    assert torch.equal(model.state_dict()["head_norm.bias"], before["head_norm.bias"])
    assert not torch.equal(model.state_dict()["head.bias"], before["head.bias"])


def test_two_processes_of_a_model_that_freezes_a_stage_and_its_head(tmp_path):
    code = """
        import pathlib, sys, torch
        from helpers.backbones import BACKBONES, build, make_runner
        from tuning.test_frozen_parts import FreezesHead
        torch.distributed.init_process_group("gloo")
        backbone = dict(BACKBONES["mmseg Swin"][1], out_indices=(1,))
        for name, hook in dict(adapted=dict(r=3, blocks=2), plain={}).items():
            model = build("mmseg", dict(backbone, frozen_stages=1 if hook else -1))
            model.__class__ = FreezesHead
            runner = make_runner(
                model, pathlib.Path(name).absolute(), hook, launcher="pytorch", randomness=dict(seed=0),
                cfg=dict(model_wrapper_cfg=dict(type="MMDistributedDataParallel", device_ids=None)),
            )
            runner.train()
            assert runner.iter == 3 and type(runner.model).__name__ == "MMDistributedDataParallel"
            assert not model.head_norm.weight.requires_grad and model.head.weight.requires_grad
    """
    run_ranks(code, tmp_path)


def test_a_second_target_that_is_refused_leaves_the_first_plain(tmp_path):
    model = of("mmseg", SWINS["mmseg"][1])
    model.backbone.stages[1].requires_grad_(False)
    check_refused(
        model, tmp_path, dict(r=3, target=["backbone.stages.0", "backbone.stages.1"]), "target 'backbone.stages.1'"
    )
    assert not any(isinstance(module, PartialLinear) for module in model.modules())


def test_it_can_be_checked_without_a_runner():
    model = of("mmseg", SWINS["mmseg"][1], frozen_stages=1)
    apla_mm.adapt(model.backbone, r=3)
    trains = requires_grad_of(model)
    with pytest.raises(
        ValueError, match=r"SwinTransformer.train\(\) of 'backbone', .* set frozen_stages=-1 of 'backbone'"
    ):
        check_train_keeps(model)
    assert requires_grad_of(model) == trains
    model.backbone.frozen_stages = -1
    check_train_keeps(model)
