import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.comparisons import assert_same, clone
from helpers.nets import TinyClassifier
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from timm.models.vision_transformer import Block as TimmBlock
from torch import nn

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.method import PartialLinear
from apla_mm.method.channels.trained import channels_digest, channels_of
from apla_mm.tuning.apla_hook import APLAHook
from apla_mm.tuning.trained import trainable_check_hook
from apla_mm.tuning.trained.trainable import format_trainable, trainable_table

FIRST_STEP = re.compile(r"first step: (\d+) of (\d+) trained tensors changed, 0 of (\d+) frozen ones")
NEVER_MOVED = "tensors that should train have not changed"


class Rogue(Hook):
    """Writes to one tensor of the model in the given iteration, before or after its step."""

    priority = "VERY_LOW"

    def __init__(self, name: str, at: int = 0, when: str = "before") -> None:
        self.name, self.at, self.when = name, at, when

    def before_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        self._write(runner, "before")

    def after_train_iter(self, runner: Runner, *args: object, **kwargs: object) -> None:
        self._write(runner, "after")

    def _write(self, runner: Runner, now: str) -> None:
        if (now, runner.iter) == (self.when, self.at):
            with torch.no_grad():
                runner.model.get_parameter(self.name)[0] += 1


class DecaysAll(torch.optim.SGD):
    """Weight decay on frozen parameters too."""

    def step(self, closure: object = None) -> None:
        super().step()
        for group in self.param_groups:
            for p in group["params"]:
                p.data.mul_(0.99)


class SkipsSteps(OptimWrapper):
    """As a loss scaler does at the start: no step in the first two iterations."""

    skipped = 0

    def step(self, **kwargs: object) -> None:
        if self.skipped < 2:
            self.skipped += 1
        else:
            super().step(**kwargs)


def frozen_row(model: nn.Module) -> int:
    return min(set(range(32)) - set(model.backbone.report.projections[0].channels))


def test_logs_the_table_of_what_trains_before_training(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    table = format_trainable(trainable_table(tiny_classifier, depth=2))
    make_runner(tiny_classifier, custom_hooks=[dict(type="APLAHook", depth=2)]).train()
    log = read_log()
    assert f"what trains:\n{table}\n" in log
    assert log.index("what trains:") < log.index("Iter(train)")
    assert "backbone.vit" in table and "backbone.vit.blocks" not in table


@pytest.mark.parametrize(
    ("backbone", "trained"),
    [(dict(apla=dict(r=8)), 2 * 2 + 2), (dict(apla=dict(r="full")), 2 * 2 + 2), (dict(frozen=True), 2)],
)
def test_proves_on_the_first_step_that_only_what_trains_moved(
    tiny_classifier: nn.Module,
    make_runner: Callable[..., Runner],
    read_log: Callable[[], str],
    backbone: dict,
    trained: int,
) -> None:
    make_runner(type(tiny_classifier)(**backbone), custom_hooks=[APLAHook()]).train()
    (found,) = FIRST_STEP.findall(read_log())
    assert found[:2] == (str(trained), str(trained))
    assert int(found[2]) > 20
    assert NEVER_MOVED not in read_log()


@pytest.mark.parametrize("name", ["backbone.vit.blocks.1.mlp.fc1.bias", "backbone.vit.pos_embed", "idle.weight"])
def test_frozen_tensor_changed_by_another_hook_stops_the_run_with_its_name(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], name: str
) -> None:
    runner = make_runner(tiny_classifier, custom_hooks=[APLAHook(), Rogue(name)])
    with pytest.raises(RuntimeError, match=rf"1 frozen tensors changed in training: {re.escape(name)}$"):
        runner.train()
    assert runner.iter == 0


def test_changed_frozen_channel_of_an_adapted_projection_stops_the_run(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner]
) -> None:
    projection = tiny_classifier.backbone.vit.blocks[0].attn.proj
    runner = make_runner(tiny_classifier, custom_hooks=[APLAHook()])
    row = frozen_row(tiny_classifier)
    projection.register_forward_hook(lambda module, *_: module.weight.data[row].add_(1))
    with pytest.raises(RuntimeError, match=r"blocks\.0\.attn\.proj\.weight \(frozen channels\)$"):
        runner.train()


def test_moved_statistics_of_a_frozen_norm_stop_the_run(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner]
) -> None:
    norm = nn.BatchNorm1d(5).requires_grad_(False)  # 4 patches and the class token
    norm.register_forward_pre_hook(lambda module, x: module.train() and x)  # else it runs as in evaluation
    tiny_classifier.backbone.vit.norm_pre = norm
    runner = make_runner(tiny_classifier, custom_hooks=[APLAHook()])
    with pytest.raises(RuntimeError, match=r"norm_pre\.(running_mean|running_var|num_batches_tracked)"):
        runner.train()


def test_optimizer_that_moves_frozen_tensors_stops_the_run_with_their_number(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner]
) -> None:
    wrapper = OptimWrapper(DecaysAll(tiny_classifier.parameters(), lr=0.1))
    runner = make_runner(tiny_classifier, optim_wrapper=wrapper, custom_hooks=[APLAHook()])
    with pytest.raises(RuntimeError, match=r"\d+ frozen tensors changed in training: (\S+( \(.*\))?, ){3}"):
        runner.train()


def test_prove_false_compares_nothing(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    make_runner(tiny_classifier, custom_hooks=[APLAHook(prove=False), Rogue("backbone.vit.pos_embed")]).train()
    assert "what trains:" in read_log() and "first step" not in read_log()


def test_gradient_accumulation_is_proved_at_the_step_that_is_taken(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1), accumulative_counts=2)
    make_runner(tiny_classifier, max_iters=4, optim_wrapper=wrapper, custom_hooks=[APLAHook()]).train()
    log = read_log()
    assert FIRST_STEP.findall(log) == [("6", "6", FIRST_STEP.findall(log)[0][2])]
    assert log.index("Iter(train) [1/4]") < log.index("first step") < log.index("Iter(train) [2/4]")


@pytest.mark.parametrize(("when", "at"), [("before", 1), ("after", 0)])
def test_frozen_tensor_changed_while_gradients_accumulate_stops_the_run(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], when: str, at: int
) -> None:
    wrapper = dict(type="OptimWrapper", optimizer=dict(type="SGD", lr=0.1), accumulative_counts=3)
    hooks = [APLAHook(), Rogue("backbone.vit.pos_embed", at, when)]
    runner = make_runner(tiny_classifier, max_iters=4, optim_wrapper=wrapper, custom_hooks=hooks)
    with pytest.raises(RuntimeError, match=r"training: backbone\.vit\.pos_embed"):
        runner.train()
    assert runner.iter == 1


def test_skipped_steps_put_the_proof_off(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    wrapper = SkipsSteps(torch.optim.SGD(tiny_classifier.parameters(), lr=0.1))
    make_runner(tiny_classifier, max_iters=4, optim_wrapper=wrapper, custom_hooks=[APLAHook()]).train()
    log = read_log()
    assert log.index("Iter(train) [2/4]") < log.index("first step") < log.index("Iter(train) [3/4]")


@pytest.mark.parametrize(("patience", "warned_after"), [(1, 2), (3, 4)])
def test_warns_of_what_trains_without_ever_moving(
    tiny_classifier: nn.Module,
    make_runner: Callable[..., Runner],
    read_log: Callable[[], str],
    patience: int,
    warned_after: int,
) -> None:
    tiny_classifier.idle.requires_grad_(True)
    make_runner(tiny_classifier, max_iters=6, custom_hooks=[APLAHook(patience=patience)]).train()
    log = read_log()
    (warning,) = [line for line in log.splitlines() if NEVER_MOVED in line]
    assert f"2 {NEVER_MOVED} in {patience} iterations: idle.weight, idle.bias" in warning
    assert "WARNING" in warning
    at = log.index(NEVER_MOVED)
    assert log.index(f"Iter(train) [{warned_after - 1}/6]") < at < log.index(f"Iter(train) [{warned_after}/6]")


def test_does_not_warn_of_what_moves_later_than_the_first_step(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    tiny_classifier.idle.requires_grad_(True)
    hooks = [APLAHook(patience=3), Rogue("idle.weight", at=1), Rogue("idle.bias", at=2)]
    make_runner(tiny_classifier, max_iters=6, custom_hooks=hooks).train()
    assert "first step: 6 of 8" in read_log()
    assert NEVER_MOVED not in read_log()


def test_raises_if_nothing_trains(tiny_classifier: nn.Module, make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(tiny_classifier.requires_grad_(False), custom_hooks=[APLAHook()])
    with pytest.raises(RuntimeError, match="nothing of the model trains"):
        runner.train()


def test_leaves_training_bit_identical(tiny_classifier: nn.Module, make_runner: Callable[..., Runner]) -> None:
    start = clone(tiny_classifier.state_dict())
    results = []
    for hooks in ([], [APLAHook()]):
        tiny_classifier.load_state_dict(start)
        runner = make_runner(tiny_classifier, max_iters=3, custom_hooks=hooks)
        runner.train()
        results.append(clone(tiny_classifier.state_dict()))
    assert_same(*results)
    assert not torch.equal(results[0]["head.weight"], start["head.weight"])


@pytest.mark.parametrize(
    ("seeds", "who"),
    [
        ([0, 0, 0], None),
        ([0, 0, 1], "rank 2 would train other channels than the rest, .* on rank 0 and .* on rank 2;"),
        ([1, 0, 0], "rank 0 would train other channels than the rest, .* on rank 1 and .* on rank 0;"),
        ([0, 1, 0, 2, 0], "ranks 1, 3 would train other channels than the rest, .* on rank 0 and .* on rank 1;"),
    ],
)
def test_ranks_are_compared_though_the_backbone_adapted_itself(
    tiny_classifier: nn.Module,
    make_runner: Callable[..., Runner],
    monkeypatch: pytest.MonkeyPatch,
    seeds: list[int],
    who: str | None,
) -> None:
    models = [type(tiny_classifier)(apla=dict(r=9, seed=seed)) for seed in seeds]
    answers = [[channels_digest(model) for model in models], [channels_of(model) for model in models]]
    monkeypatch.setattr(trainable_check_hook, "all_gather_object", lambda own: answers.pop(0))
    runner = make_runner(models[0], custom_hooks=[dict(type="APLAHook")])
    if who is None:
        runner.train()
        return
    with pytest.raises(RuntimeError, match=who) as error:
        runner.train()
    assert re.search(
        r"of 'backbone.vit.blocks.0.attn.proj' for one: 9 \((\d+, ){7}\d+ and 1 more\) on", str(error.value)
    )


def test_ranks_that_adapted_other_blocks(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    models = [type(tiny_classifier)(apla=dict(r=3, blocks=blocks)) for blocks in ([1], [0, 1])]
    answers = [[channels_digest(model) for model in models], [channels_of(model) for model in models]]
    monkeypatch.setattr(trainable_check_hook, "all_gather_object", lambda own: answers.pop(0))
    with pytest.raises(
        RuntimeError, match=r"'backbone.vit.blocks.0.attn.proj' for one: none or all on rank 0 and 3 \("
    ):
        make_runner(models[0], custom_hooks=[dict(type="APLAHook")]).train()


UNREAD = {
    "recompute": dict(recompute="block"),
    "train_norm": dict(train_norm=True),
    "train_bias": dict(train_bias=True),
    "train_pos_embed": dict(train_pos_embed=True),
    "trainable": dict(trainable=["norm.*"]),
    "target": dict(target="backbone"),
    "seed": dict(seed=3),
    "frozen_eval": dict(frozen_eval=False),
    "drop_path": dict(drop_path=False),
    "recompute, train_norm": dict(train_norm=False, recompute="none"),  # given, if only as it would be
}


@pytest.mark.parametrize("names", UNREAD)
def test_option_that_nothing_reads_is_an_error(names: str) -> None:
    with pytest.raises(ValueError, match=rf"APLAHook: {names} given, and none of r, channels, blocks.*Add r"):
        APLAHook(**UNREAD[names])
    for adapts in (dict(r=3), dict(blocks="none")):
        if not (adapts == dict(blocks="none") and "seed" in names) and names != "drop_path":
            assert APLAHook(**adapts, **UNREAD[names]).adapts


def test_options_that_exclude_one_another_are_errors() -> None:
    for options, message in (
        (dict(channels={"a": [1]}, seed=2), "seed draws channels, and channels are listed"),
        (dict(blocks="none", r=4), "blocks='none' adapts no projection, and nothing reads r"),
        (dict(blocks="none", seed=4), "nothing reads seed"),
        (dict(r=4, frozen_eval=False, drop_path=True), "drop_path is read with frozen_eval alone"),
    ):
        with pytest.raises(ValueError, match=message):
            APLAHook(**options)


def test_blocks_that_are_all_named_adapt_in_full(make_runner: Callable[..., Runner]) -> None:
    torch.manual_seed(0)
    model = TinyClassifier()
    make_runner(model, custom_hooks=[dict(type="APLAHook", blocks="all")]).train()
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    assert trained == {f"vit.blocks.{i}.attn.proj.{kind}" for i in range(2) for kind in ("weight", "bias")}


def test_hook_recomputes_in_a_backbone_that_it_adapts_and_leaves_one_that_adapted_itself(
    make_runner: Callable[..., Runner], tiny_classifier: nn.Module
) -> None:
    """With APLAViT(apla=...) the hook's options work or are refused."""
    with pytest.raises(ValueError, match="none of r, channels, blocks"):
        make_runner(tiny_classifier, custom_hooks=[dict(type="APLAHook", recompute="block")])
    with pytest.raises(ValueError, match="was adapted otherwise before"):
        make_runner(tiny_classifier, custom_hooks=[dict(type="APLAHook", r=8, recompute="block")]).train()
    torch.manual_seed(0)
    model = TinyClassifier()
    make_runner(model, custom_hooks=[dict(type="APLAHook", r=8, recompute="block")]).train()
    assert all(type(block).forward is not TimmBlock.forward for block in model.backbone.vit.blocks)


def test_checkpoint_says_what_was_asked_for(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    torch.manual_seed(0)
    make_runner(TinyClassifier(), custom_hooks=[dict(type="APLAHook", r=0.25, seed=5, train_norm=True)]).train()
    meta = read_checkpoint(tmp_path / "work/iter_2.pth")["meta"]
    assert meta["apla"] == dict(
        r=0.25, seed=5, blocks="all", recompute="none", target=["backbone"], trainable=[],
        train=dict(norm=True, bias=False, pos_embed=False),
    )  # fmt: skip


def test_checkpoint_says_what_a_backbone_was_asked_for(
    make_runner: Callable[..., Runner], tiny_classifier: nn.Module, tmp_path: Path
) -> None:
    make_runner(tiny_classifier, custom_hooks=[dict(type="APLAHook")]).train()
    meta = read_checkpoint(tmp_path / "work/iter_2.pth")["meta"]
    assert meta["apla"] == dict(r=8, seed=0, blocks=[0, 1], trainable=[], recompute="none")


def test_two_hooks_adapt_two_targets(make_runner: Callable[..., Runner]) -> None:
    hooks = [dict(type="APLAHook", r=r, target=f"backbone.vit.blocks.{i}") for i, r in enumerate((3, 5))]
    runner = make_runner(TinyClassifier(), custom_hooks=hooks)
    runner.train()
    adapted = [module for module in runner.model.modules() if isinstance(module, PartialLinear)]
    assert [len(module.trained.channels) for module in adapted] == [3, 5]
