"""Channels that a run chooses by score: as listed ones to the bit, the same in all processes and after resume."""

import copy
import json
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.backbones import BACKBONES, build
from helpers.backbones import make_runner as make_family_runner
from helpers.comparisons import assert_same_checkpoint
from helpers.data_sets import Noise
from helpers.nets import TinyClassifier
from helpers.optional import needs
from helpers.processes import in_group
from mmengine.config import Config
from mmengine.dataset import DefaultSampler, InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from apla_mm.delta import load_delta
from apla_mm.loading.base_from_config import delta_path
from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.method import merge, select_channels
from apla_mm.method.channels.selection import Selection
from apla_mm.method.channels.trained import channels_of
from apla_mm.tuning.apla_hook import APLAHook

PREFIX = "backbone.vit."
SELECTIONS = ["magnitude", dict(type="gradient", batches=2), dict(type="fisher", batches=3)]
HOOK, BACKBONE = "hook", "backbone"
RESUMABLE, MMENGINE = "ResumableTrainLoop", "IterBasedTrainLoop"


PARTS = ("state_dict", "ema_state_dict", "optimizer")


class LaterWeights(TinyClassifier):
    """Gets its weights when mmengine initialises them, which is after models are adapted; drops at random."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(norm=True, **settings)
        for block in self.backbone.vit.blocks:
            block.mlp.drop2.p = 0.2

    def init_weights(self) -> None:
        super().init_weights()
        generator = torch.Generator().manual_seed(11)
        for name, tensor in sorted(self.backbone.state_dict().items()):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.2 + ("norm" in name))


class Remembers(Noise):
    """A data set with a memory, as of transforms that mix images."""

    def __getitem__(self, i: int) -> dict[str, Any]:
        self.last = getattr(self, "last", torch.zeros(3, 32, 32))
        sample = super().__getitem__(i)
        sample["inputs"] = sample["inputs"] + 0.1 * self.last + 0.1 * torch.randn(3, 32, 32)
        self.last = sample["inputs"]
        return sample


def make_runner(
    folder: Path,
    apla: Mapping[str, Any],
    way: str = HOOK,
    loop: str = RESUMABLE,
    dataset: type[Noise] = Noise,
    workers: int = 0,
    **settings: Any,
) -> Runner:
    torch.manual_seed(0)
    model = LaterWeights(**(dict(apla=dict(apla)) if way == BACKBONE else {}))
    sampler: Any = DefaultSampler if loop == RESUMABLE else InfiniteSampler
    defaults: dict[str, Any] = dict(
        work_dir=str(folder),
        train_dataloader=dict(
            dataset=dataset(), sampler=dict(type=sampler, shuffle=True), batch_size=2, num_workers=workers,
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(type=loop, max_iters=3),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1)),
        default_hooks=dict(
            checkpoint=dict(type="AtomicCheckpointHook", interval=1, by_epoch=False),
            resume_check=dict(type="ResumeCheckHook"),
        ),
        custom_hooks=[dict(type="APLAHook", **(apla if way == HOOK else {})), dict(type="EMAHook")],
        randomness=dict(seed=0),
        log_processor=dict(by_epoch=False),
        default_scope="mmengine",
        experiment_name=uuid.uuid4().hex,
    )  # fmt: skip
    settings = {**defaults, **settings}
    # what is read of a config: by what a resumed run is compared, and how several processes train on CPUs
    wrapper = dict(type="MMDistributedDataParallel", device_ids=None, broadcast_buffers=False)
    cfg = Config(dict(custom_hooks=settings["custom_hooks"], model_wrapper_cfg=wrapper))
    return Runner(model=model, cfg=cfg, **settings)


def recorded(path: Path) -> dict[str, list[int]]:
    return read_checkpoint(path)["meta"]["apla_channels"]


class Recorder(Hook):
    """Sees random numbers and what is left of gradients when training begins."""

    def before_train(self, runner: Runner) -> None:
        self.drawn = torch.get_rng_state()
        self.gradients = [p.grad for p in runner.model.parameters() if p.grad is not None]


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
@pytest.mark.parametrize(("way", "loop"), [(HOOK, RESUMABLE), (BACKBONE, RESUMABLE), (HOOK, MMENGINE)])
@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_is_that_of_the_same_channels_in_a_file(
    selection: Any, way: str, loop: str, workers: int, tmp_path: Path
) -> None:
    seen, expected = Recorder(), Recorder()
    runner = make_runner(tmp_path / "scored", dict(r=5, selection=selection), way, loop, Remembers, workers)
    runner.register_hook(seen)
    runner.train()
    lists = recorded(tmp_path / "scored/iter_3.pth")
    assert lists == channels_of(runner.model) and len(lists) == 2
    if way == BACKBONE:
        report = runner.model.backbone.report
        assert {PREFIX + p.name: list(p.channels) for p in report.projections} == lists

    file = tmp_path / "channels.json"
    prefix = PREFIX if way == BACKBONE else "backbone."
    file.write_text(json.dumps({name.removeprefix(prefix): chosen for name, chosen in lists.items()}))
    other = make_runner(tmp_path / "listed", dict(channels=str(file)), way, loop, Remembers, workers)
    other.register_hook(expected)
    other.train()
    assert channels_of(other.model) == lists
    assert_same_checkpoint(tmp_path / "scored/iter_3.pth", tmp_path / "listed/iter_3.pth", PARTS)
    assert torch.equal(seen.drawn, expected.drawn) and not seen.gradients


class Begins(Hook):
    """Keeps a copy of the model, plain, when training begins, and the batches."""

    def before_train(self, runner: Runner) -> None:
        self.model, self.batches = merge(copy.deepcopy(runner.model)), []

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.batches.append(data_batch)


@pytest.mark.parametrize("selection", SELECTIONS, ids=str)
def test_scores_are_of_the_loaded_weights_and_the_first_batches(selection: Any, tmp_path: Path) -> None:
    runner = make_runner(tmp_path, dict(r=5, selection=selection, frozen_eval=False))
    for block in runner.model.backbone.vit.blocks:
        block.mlp.drop2.p = 0.0  # what is drawn is not that of training
    runner.register_hook(begins := Begins())
    runner.train()

    def loss(model: Any, batch: Mapping[str, Tensor]) -> Tensor:
        return model(**batch, mode="loss")["loss"]

    how = Selection.of(selection)
    arguments: Any = (begins.batches[: how.batches], loss) if how.reads_data else ()
    assert recorded(tmp_path / "iter_1.pth") == select_channels(begins.model.train(), 5, how.type, *arguments)


@pytest.mark.parametrize("way", [HOOK, BACKBONE])
def test_a_resumed_run_keeps_its_channels_though_weights_have_moved(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    apla = dict(r=5, selection=dict(type="fisher", batches=2))
    make_runner(tmp_path / "whole", apla, way).train()
    first = tmp_path / "whole/iter_1.pth"

    def scored_again(*args: object) -> None:
        raise AssertionError("channels are scored again")

    monkeypatch.setattr("apla_mm.tuning.channel_selection._Scoring.__call__", scored_again)
    resumed = make_runner(tmp_path / "resumed", apla, way, resume=True, load_from=str(first))
    resumed.train()
    assert recorded(tmp_path / "resumed/iter_3.pth") == recorded(first) == channels_of(resumed.model)
    assert_same_checkpoint(tmp_path / "whole/iter_3.pth", tmp_path / "resumed/iter_3.pth", PARTS)


def test_weights_alone_of_such_a_checkpoint_are_scored_anew(tmp_path: Path) -> None:
    make_runner(tmp_path / "first", dict(r=5, selection="magnitude")).train()
    last = tmp_path / "first/iter_3.pth"
    with torch.no_grad():
        checkpoint = read_checkpoint(last)
        checkpoint["state_dict"][f"{PREFIX}blocks.0.attn.proj.weight"][7:12] *= 100
        torch.save(checkpoint, tmp_path / "moved.pth")
    make_runner(tmp_path / "next", dict(r=5, selection="magnitude"), load_from=str(tmp_path / "moved.pth")).train()
    assert recorded(tmp_path / "next/iter_1.pth")[f"{PREFIX}blocks.0.attn.proj"] == [7, 8, 9, 10, 11]
    # nothing to resume yet: as a run that begins
    make_runner(tmp_path / "empty", dict(r=5, selection="magnitude"), resume=True).train()
    assert recorded(tmp_path / "empty/iter_1.pth") == recorded(tmp_path / "first/iter_1.pth")


def test_checkpoints_say_what_was_asked_for_and_random_ones_are_as_ever(tmp_path: Path) -> None:
    make_runner(tmp_path / "fisher", dict(r=5, selection="fisher")).train()
    meta = read_checkpoint(tmp_path / "fisher/iter_1.pth")["meta"]
    assert meta["apla"]["selection"] == dict(type="fisher", batches=8) and "seed" not in meta["apla"]
    make_runner(tmp_path / "random", dict(r=5)).train()
    meta = read_checkpoint(tmp_path / "random/iter_1.pth")["meta"]
    assert "apla_channels" not in meta and "selection" not in meta["apla"] and meta["apla"]["seed"] == 0


@pytest.mark.parametrize(
    ("then", "now", "told"),
    [
        (dict(r=5), dict(r=5, selection="magnitude"), r"does not record the channels of 'backbone.vit.blocks.0"),
        (dict(r=5, selection="magnitude"), dict(r=4, selection="magnitude"), "5 channels are listed for .* 4 train"),
        (dict(r=5, selection="magnitude"), dict(r=5, selection="fisher"), "custom_hooks.APLAHook.selection"),
        (dict(r=5, selection="magnitude"), dict(r=5), "custom_hooks.APLAHook.selection"),
    ],
)
def test_another_selection_is_not_resumed(then: Any, now: Any, told: str, tmp_path: Path) -> None:
    make_runner(tmp_path / "then", then).train()
    checkpoint = str(tmp_path / "then/iter_1.pth")
    with pytest.raises(ValueError, match=told):
        make_runner(tmp_path / "now", now, resume=True, load_from=checkpoint).train()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (dict(selection="fisher"), "selection given, and none of r, channels, blocks"),
        (dict(r="full", selection="fisher"), "r='full' is given, which trains all"),
        (dict(r=4, seed=0, selection="fisher"), "seed=0 draws channels, and selection='fisher' scores them"),
        (dict(channels="a.json", selection="fisher"), "selection chooses channels, and channels are listed"),
        (dict(channels="a.json", selection="random"), "selection chooses channels, and channels are listed"),
        (dict(blocks="none", selection="fisher"), "nothing reads selection"),
        (dict(blocks=1, selection="fisher"), "no r is given"),
        (dict(r=4, selection="best"), "must be one of 'random', 'magnitude'"),
    ],
)
def test_options_that_do_not_go_together_are_errors(options: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=f"APLAHook: .*{told}"):
        APLAHook(**options)


def test_a_run_that_cannot_be_scored_is_refused_before_its_model_changes(tmp_path: Path) -> None:
    loader = torch.utils.data.DataLoader(Noise(), batch_size=2)
    runner = make_runner(tmp_path, dict(r=5, selection="fisher"), train_dataloader=loader)
    with pytest.raises(ValueError, match="selection='fisher' reads train_dataloader by a sampler of its own"):
        runner.train()
    assert not channels_of(runner.model)


def test_without_the_hook_a_backbone_that_awaits_its_channels_does_not_train(tmp_path: Path) -> None:
    runner = make_runner(tmp_path, dict(r=5, selection="magnitude"), BACKBONE, custom_hooks=[])
    with pytest.raises(RuntimeError, match=r"add custom_hooks=\[dict\(type='APLAHook'\)\]"):
        runner.train()


@pytest.mark.slow
@pytest.mark.parametrize("family", BACKBONES)
def test_every_family_is_scored(family: str, tmp_path: Path) -> None:
    scope, backbone, count = BACKBONES[family]
    needs(scope)
    model = build(scope, backbone)
    runner = make_family_runner(model, tmp_path, dict(r=3, selection=dict(type="fisher", batches=2)))
    runner.train()
    lists = recorded(tmp_path / "iter_3.pth")
    assert lists == channels_of(model) and len(lists) == count
    assert all(len(chosen) == 3 for chosen in lists.values())


def _train_in_a_group(rank: int, folder: str) -> dict[str, Any]:
    scored = Path(folder, "scored")
    settings: Any = dict(launcher="pytorch")
    runner = make_runner(scored, dict(r=5, selection=dict(type="gradient", batches=2)), **settings)
    runner.train()
    lists = channels_of(runner.model.module)
    own = {name.removeprefix("backbone."): chosen for name, chosen in lists.items()}
    listed = make_runner(Path(folder, "listed"), dict(channels=own), **settings)
    listed.train()
    return dict(lists=lists, state=runner.model.module.state_dict(), expected=listed.model.module.state_dict())


@pytest.mark.slow
def test_two_processes_choose_and_train_the_same(tmp_path: Path) -> None:
    one, other = in_group(_train_in_a_group, tmp_path, str(tmp_path))
    assert one["lists"] == other["lists"] == recorded(tmp_path / "scored/iter_3.pth")
    assert_same_checkpoint(tmp_path / "scored/iter_3.pth", tmp_path / "listed/iter_3.pth", PARTS)
    trained = [key for key in one["state"] if "running" not in key]
    assert all(torch.equal(one["state"][key], other["state"][key]) for key in trained)


def _fail_in_a_group(rank: int, folder: str) -> str:
    runner = make_runner(Path(folder, "work"), dict(r=5, selection="fisher"), launcher="pytorch")
    if os.environ["RANK"] == "1":
        runner.model.module.forward = lambda *args, **kwargs: 1 / 0
    try:
        runner.train()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "none"


@pytest.mark.slow
def test_a_process_that_fails_stops_all(tmp_path: Path) -> None:
    one, other = in_group(_fail_in_a_group, tmp_path, str(tmp_path))
    assert one.startswith("RuntimeError: rank 1 failed: ZeroDivisionError") and other.startswith("ZeroDivisionError")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["segmentation", "detection"])
def test_whole_configs_with_autocast_and_deltas(
    kind: str, segmentation_config: Config, detection_config: Config, tmp_path: Path
) -> None:
    cfg = dict(segmentation=segmentation_config, detection=detection_config)[kind]
    selection = dict(type="fisher", batches=2)
    cfg.model.backbone.apla = dict(r=4, selection=selection, recompute="mlp", frozen_dtype="bfloat16")
    cfg.optim_wrapper.type = "BFloat16OptimWrapper"
    if kind == "detection":
        cfg.optim_wrapper.parts = ["backbone", "neck"]
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=1)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type="DeltaHook")]
    runner = Runner.from_cfg(cfg)
    runner.train()
    (path,) = Path(cfg.work_dir).glob("*.pth")
    lists = recorded(path)
    assert lists == channels_of(runner.model) and {len(chosen) for chosen in lists.values()} == {4}
    delta = load_delta(delta_path(path))
    assert {name: chosen.tolist() for name, chosen in delta.channels.items()} == lists
    assert delta.header.selection["selection"] == selection and delta.header.seed is None
