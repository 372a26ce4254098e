"""Runs by TuningHook: what trains, plain checkpoints, resume, EMA, processes, refusals."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.comparisons import assert_same, assert_same_checkpoint, clone
from helpers.nets import TinyClassifier
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.model import BaseModule
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.method import merge
from apla_mm.methods import LoRALinear
from apla_mm.tuning.tuning_hook import TuningHook

LORA = dict(type="lora", r=2, layers=["qkv", "fc1"])
EMA = dict(type="EMAHook", ema_type="ExponentialMovingAverage", momentum=0.3)
HEADS = {"head.weight", "head.bias"}


def model(**options: Any) -> TinyClassifier:
    torch.manual_seed(0)
    return TinyClassifier(**options)


def saved(folder: Path, at: int) -> dict[str, Any]:
    return read_checkpoint(folder / f"work/iter_{at}.pth")


class Trained(Hook):
    """Notes what trains at the first step, and the optimizer's groups by names."""

    def before_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        names = {p: name for name, p in runner.model.named_parameters()}
        self.names = {name for name, p in runner.model.named_parameters() if p.requires_grad}
        self.groups = [
            ([names[p] for p in g["params"] if p in names], g["lr"]) for g in runner.optim_wrapper.param_groups
        ]


@pytest.mark.parametrize("method", ["full", "head", "norm", "bitfit", "wo", dict(LORA, recompute="block")])
def test_saves_plain_checkpoints_in_which_only_what_trains_moved(
    make_runner: Callable[..., Runner], read_log: Callable[[], str], tmp_path: Path, method: Any
) -> None:
    net, noted = model(), Trained()
    before = clone(net.state_dict())
    runner = make_runner(net, custom_hooks=[dict(type="TuningHook", method=method), noted])
    runner.train()
    state = saved(tmp_path, 2)["state_dict"]
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [(k, v.shape, v.dtype) for k, v in before.items()]
    moved = {k for k, v in state.items() if not torch.equal(v, before[k])}
    assert moved == {re.sub(r"\.lora\.[ab]$", ".weight", name) for name in noted.names} and noted.names >= HEADS
    assert set(noted.groups[0][0]) == noted.names
    assert re.search(r"first step: \d+ of \d+ trained tensors changed, 0 of \d+ frozen ones", read_log())
    assert "what trains:" in read_log()
    given = dict(type=method) if isinstance(method, str) else method
    assert saved(tmp_path, 2)["meta"]["method"] == given

    plain = model()
    plain.load_state_dict(state)
    x = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()(x, None), runner.model.eval()(x, None))  # by LoRA too, to the bit


class Scores(BaseMetric):
    """Keeps what a validation saw."""

    seen: list[torch.Tensor] = []

    def process(self, data_batch: Any, data_samples: Any) -> None:
        Scores.seen.append(torch.stack(list(data_samples)))
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return dict(score=0.0)


class Validates(TinyClassifier):
    def forward(self, inputs: Any, labels: Any, mode: str = "tensor") -> Any:
        return super().forward(inputs, labels, "tensor" if mode == "predict" else mode)


@pytest.mark.parametrize("hooks", [[], [EMA]], ids=["model", "EMA"])
def test_validation_in_training_sees_what_is_saved(
    make_runner: Callable[..., Runner], tmp_path: Path, hooks: list
) -> None:
    torch.manual_seed(0)
    Scores.seen = []
    torch.manual_seed(5)
    samples = [dict(inputs=torch.randn(3, 32, 32), labels=0) for _ in range(2)]
    make_runner(
        Validates(),
        max_iters=3,
        custom_hooks=[dict(type="TuningHook", method=LORA), *hooks],
        train_cfg=dict(by_epoch=False, max_iters=3, val_interval=3),
        val_cfg=dict(),
        val_dataloader=DataLoader(samples, batch_size=2),
        val_evaluator=[Scores()],
    ).train()
    plain = Validates()
    plain.load_state_dict(saved(tmp_path, 3)["state_dict"])
    with torch.no_grad():
        expected = plain.eval()(torch.stack([sample["inputs"] for sample in samples]), None)
    assert len(Scores.seen) == 1 and torch.equal(Scores.seen[0], expected)


@pytest.mark.parametrize("hooks", [[], [EMA], [dict(EMA, update_buffers=True)]], ids=["model", "EMA", "buffers too"])
@pytest.mark.parametrize("method", ["bitfit", LORA], ids=["bitfit", "lora"])
def test_a_run_that_is_resumed_ends_as_one_that_was_not_to_the_bit(
    make_runner: Callable[..., Runner], tmp_path: Path, method: Any, hooks: list
) -> None:
    def run(**settings: Any) -> dict[str, Any]:
        own = copy.deepcopy([dict(type="TuningHook", method=method), *hooks])
        checkpoints = dict(type="CheckpointHook", interval=3, by_epoch=False)
        # as CheckpointReaderHook reads, whose types mmengine's own reader does not know
        own.append(dict(type="CheckpointReaderHook"))
        default = dict(checkpoint=checkpoints, param_scheduler=dict(type="ParamSchedulerHook"))
        train = dict(type="ResumableTrainLoop", max_iters=6)
        make_runner(
            model(norm=True), max_iters=6, custom_hooks=own, default_hooks=default, train_cfg=train,
            randomness=dict(seed=3), **settings,
        ).train()  # fmt: skip
        return saved(tmp_path, 6)

    whole = run()
    assert ("apla_mm_unmerged" in whole) is (method == LORA)
    (tmp_path / "work/iter_6.pth").unlink()
    resumed = run(resume=True, load_from=str(tmp_path / "work/iter_3.pth"))
    parts = ("state_dict", "optimizer", *(["ema_state_dict"] if hooks else []))
    parts += ("apla_mm_unmerged",) if method == LORA else ()
    assert_same_checkpoint(whole, resumed, parts)


def test_a_resumed_run_of_another_method_is_refused(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    make_runner(model(), custom_hooks=[dict(type="TuningHook", method=LORA)]).train()
    settings = dict(resume=True, load_from=str(tmp_path / "work/iter_2.pth"), max_iters=4)
    for method in ("head", dict(LORA, r=3)):
        runner = make_runner(model(), custom_hooks=[dict(type="TuningHook", method=method)], **settings)
        with pytest.raises(ValueError, match="was trained by .*'lora', 'r': 2.* and method is"):
            runner.train()
    hooks = [dict(type="TuningHook", method=dict(LORA, recompute="block"))]  # which changes no result
    make_runner(model(), custom_hooks=hooks, **settings).train()
    assert saved(tmp_path, 4)["meta"]["iter"] == 4


def test_its_weights_can_be_begun_from_by_any_method(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    make_runner(model(), custom_hooks=[dict(type="TuningHook", method=LORA)]).train()
    first = (tmp_path / "work/iter_2.pth").rename(tmp_path / "first.pth")
    state = read_checkpoint(first)["state_dict"]
    for method in (LORA, "head"):
        start = Start()
        hooks = [dict(type="TuningHook", method=method), start]
        make_runner(model(), custom_hooks=hooks, load_from=str(first)).train()
        assert_same(start.state, state)


class Start(Hook):
    """Keeps the weights that training starts from."""

    def before_train(self, runner: Runner) -> None:
        self.state = clone(runner.model.state_dict())


def test_lora_takes_the_settings_of_the_weight_beside_which_it_stands(make_runner: Callable[..., Runner]) -> None:
    noted, net = Trained(), model()
    rules = {"blocks.0": dict(lr_mult=0.5), "fc1": dict(lr_mult=0.1), "head": dict(lr_mult=10)}
    wrapper = dict(
        type="OptimWrapper", optimizer=dict(type="AdamW", lr=1.0), paramwise_cfg=dict(custom_keys=rules),
        constructor="TrainableOptimWrapperConstructor",
    )  # fmt: skip
    make_runner(net, custom_hooks=[dict(type="TuningHook", method=LORA), noted], optim_wrapper=wrapper).train()
    rates = {name: lr for names, lr in noted.groups for name in names}
    assert noted.names == set(rates)
    for name, lr in rates.items():
        key = next((key for key in sorted(rules, key=len, reverse=True) if key in name), None)
        assert lr == (rules[key]["lr_mult"] if key else 1.0), name
    # each pair in its layer's place
    blocks = [names for names, _ in noted.groups if "backbone.vit.blocks.0.attn.qkv.lora.a" in names]
    layers = ("attn.qkv", "mlp.fc1")
    assert blocks == [[f"backbone.vit.blocks.0.{layer}.lora.{part}" for layer in layers for part in "ab"]]


def test_trains_under_bfloat16_autocast(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    wrapper = dict(type="BFloat16OptimWrapper", optimizer=dict(type="AdamW", lr=1e-2))
    make_runner(model(), custom_hooks=[dict(type="TuningHook", method=LORA)], optim_wrapper=wrapper).train()
    checkpoint = saved(tmp_path, 2)
    assert all(v.dtype == torch.float32 for v in checkpoint["state_dict"].values())
    kept = checkpoint["apla_mm_unmerged"]["model"]
    base, a, b = (kept[f"backbone.vit.blocks.0.attn.qkv.{k}"] for k in ("weight", "lora.a", "lora.b"))
    got = checkpoint["state_dict"]["backbone.vit.blocks.0.attn.qkv.weight"]
    torch.testing.assert_close(got, base + b @ a)
    assert b.any() and set(kept) == {
        f"backbone.vit.blocks.{i}.{layer}.{k}"
        for i in range(2)
        for layer in ("attn.qkv", "mlp.fc1")
        for k in ("weight", "lora.a", "lora.b")
    }


def test_frozen_modules_run_as_in_evaluation_but_for_full_fine_tuning(make_runner: Callable[..., Runner]) -> None:
    class Modes(Hook):
        priority = "LOWEST"

        def before_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
            backbone = runner.model.backbone
            dropouts = {m.training for m in backbone.modules() if isinstance(m, nn.Dropout)}
            self.seen = dropouts, {m.training for m in backbone.modules() if isinstance(m, LoRALinear)}

    for method, frozen_eval, expected in (
        (LORA, True, ({False}, {True})),
        (LORA, False, ({True}, {True})),
        ("full", True, ({True}, set())),
    ):
        modes = Modes()
        make_runner(
            model(), custom_hooks=[dict(type="TuningHook", method=method, frozen_eval=frozen_eval), modes]
        ).train()
        assert modes.seen == expected


class Prompt:
    """A user's own: the position embedding trains."""

    def prepare(self, backbone: nn.Module) -> None:
        backbone.requires_grad_(False)
        backbone.vit.pos_embed.requires_grad_(True)

    def merge(self, backbone: nn.Module) -> None:
        merge(backbone)


class Adds(Prompt):
    """Breaks the first rule."""

    def prepare(self, backbone: nn.Module) -> None:
        backbone.vit.prompt = nn.Parameter(torch.zeros(3))

    def merge(self, backbone: nn.Module) -> None:
        del backbone.vit.prompt


class Thaws(Prompt):
    """Breaks the last rule."""

    def prepare(self, backbone: nn.Module) -> None:
        backbone.requires_grad_(True)


def test_a_method_of_ones_own(make_runner: Callable[..., Runner]) -> None:
    noted = Trained()
    make_runner(model(), custom_hooks=[dict(type="TuningHook", method=f"{__name__}.Prompt"), noted]).train()
    assert noted.names == {"backbone.vit.pos_embed", *HEADS}


REFUSED = [
    (
        dict(method=f"{__name__}.Adds"),
        {},
        "Adds: the state dict .* is not the plain model's.*'backbone.vit.prompt' differ",
    ),
    (
        dict(method=f"{__name__}.Thaws"),
        {},
        "Thaws has 'backbone.vit.norm.weight', .* train, which the model has frozen",
    ),
    (dict(method="lora:layers=fc9"), {}, "target 'backbone': lora: .*no linear layer is called 'fc9'"),
    (dict(method="head", target="neck"), {}, "the model has no part 'neck'"),
    (dict(method=LORA), dict(custom_hooks=[dict(EMA, begin_iter=1)]), "LoRA adds parameters, .*leave begin_iter"),
    (dict(method="head"), dict(custom_hooks=[dict(type="TuningHook", method="full")]), "a run has one TuningHook"),
    (dict(method="bitfit"), dict(cfg=dict(activation_checkpointing=["backbone"])), "recompute='block'.* saves memory"),
    (
        dict(method="bitfit"),
        dict(cfg=dict(method="bitfit")),
        "method='bitfit' in the config is read by apla-mm train alone",
    ),
]


@pytest.mark.parametrize(("settings", "others", "message"), REFUSED)
def test_refusals_leave_the_model_as_it_was(
    make_runner: Callable[..., Runner], settings: dict, others: dict, message: str
) -> None:
    net = model()
    before = [(name, p.requires_grad, p.clone()) for name, p in net.named_parameters()]
    hooks = [dict(type="TuningHook", **settings), *others.get("custom_hooks", [])]
    runner = make_runner(net, custom_hooks=copy.deepcopy(hooks))
    runner.cfg.update(others.get("cfg", {}))
    with pytest.raises(ValueError, match=message):
        runner.train()
    assert [name for name, _, _ in before] == [name for name, _ in net.named_parameters()]
    for (_, grad, tensor), parameter in zip(before, net.parameters(), strict=True):
        assert parameter.requires_grad is grad and torch.equal(parameter, tensor)
    assert not any(isinstance(module, LoRALinear) for module in net.modules())


def test_a_backbone_that_adapted_itself_is_refused(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(model(apla=dict(r=4)), custom_hooks=[dict(type="TuningHook", method="head")])
    with pytest.raises(ValueError, match="'backbone', APLAViT, has adapted itself by APLA: leave its apla out"):
        runner.train()


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("lor", "there is no method 'lor'; there are full"),
        ("lora:rank=3", "it takes r, alpha"),
        (dict(type="apla", r=3), "APLA's hook is APLAHook"),
    ],
)
def test_arguments_are_refused_when_the_hook_is_built(method: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TuningHook(method=method)


class FreezesInTrain(BaseModule):
    """As with frozen_stages: its first layer freezes each time that it is set to train."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)

    def train(self, mode: bool = True) -> nn.Module:
        super().train(mode)
        self.first.requires_grad_(False)
        return self

    def forward(self, x: Any) -> Any:
        return (self.second(self.first(x.flatten(1)[:, :2])).repeat(1, 16)[..., None, None],)


def test_what_the_model_freezes_in_train_stays_frozen(make_runner: Callable[..., Runner]) -> None:
    for method, expected in (
        ("lora:r=1,layers=all", {f"backbone.second.lora.{part}" for part in "ab"}),
        ("bitfit", {"backbone.second.bias"}),
        ("full", {"backbone.second.bias", "backbone.second.weight"}),
    ):
        net, noted = model(), Trained()
        net.backbone = FreezesInTrain()
        make_runner(net, custom_hooks=[dict(type="TuningHook", method=method), noted]).train()
        assert noted.names == expected | HEADS


def test_nothing_is_done_to_a_model_that_is_tested(make_runner: Callable[..., Runner]) -> None:
    net = model()
    runner = make_runner(net, custom_hooks=[dict(type="TuningHook", method=LORA)])
    assert not isinstance(runner.optim_wrapper, OptimWrapper)
    runner.call_hook("before_run")
    assert not any(isinstance(module, LoRALinear) for module in net.modules())


def test_an_optimizer_that_does_not_hold_the_backbone_is_refused(make_runner: Callable[..., Runner]) -> None:
    net = model()
    wrapper = OptimWrapper(torch.optim.SGD(net.head.parameters(), lr=0.1))
    runner = make_runner(net, custom_hooks=[dict(type="TuningHook", method=LORA)], optim_wrapper=wrapper)
    with pytest.raises(ValueError, match="the optimizer holds nothing beside which 'backbone.vit.blocks.0.attn.qkv"):
        runner.train()
    assert not any(isinstance(module, LoRALinear) for module in net.modules())
