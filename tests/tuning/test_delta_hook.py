"""Runs that write deltas beside their checkpoints, against runs that do not."""

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.comparisons import PARTS, assert_same, assert_same_checkpoint, clone
from helpers.logs import log_of
from helpers.nets import TinyClassifier
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.fileio import HTTPBackend
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import FlexibleRunner, Runner, load_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.data import DataLoader

from apla_mm.delta import DeltaError, extract_delta_from_digests, load_delta, make
from apla_mm.delta.base_file import save_base
from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.tuning.delta_hook import DeltaHook

pytestmark = pytest.mark.slow

DELTA = dict(type="DeltaHook")


class Score(BaseMetric):
    """Rises until the third validation, and falls then."""

    scores: list[float]

    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"score": self.scores.pop(0)}


def train(
    make_runner: Callable[..., Runner],
    model: nn.Module,
    folder: Path,
    iterations: int = 4,
    hooks: tuple[Hook, ...] = (),
    apla: dict | None = None,
    delta: dict | None = DELTA,
    max_keep_ckpts: int = -1,
    **settings: Any,
) -> Runner:
    metric = Score()
    metric.scores = [1.0, 3.0, 2.0, 1.0]
    defaults: dict[str, Any] = dict(
        work_dir=str(folder),
        train_cfg=dict(type="ResumableTrainLoop", max_iters=iterations, val_interval=2),
        val_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32), labels=0)] * 2, batch_size=2),
        val_cfg=dict(),
        val_evaluator=Evaluator(metric),
        param_scheduler=[dict(type="CosineAnnealingLR", by_epoch=False, T_max=8, end=8)],
        randomness=dict(seed=3),
        default_hooks=dict(
            checkpoint=dict(
                type="AtomicCheckpointHook",
                by_epoch=False,
                interval=1,
                max_keep_ckpts=max_keep_ckpts,
                save_best="score",
                rule="greater",
            ),
            resume_check=dict(type="ResumeCheckHook"),
        ),
        custom_hooks=[
            dict(type="APLAHook", **(apla or {})),
            dict(type="EMAHook", momentum=0.2),
            *([delta] if delta else []),
            *hooks,
        ],
    )
    runner = make_runner(model, **{**defaults, **settings})
    runner.train()
    return runner


@pytest.fixture
def fresh() -> Callable[[], nn.Module]:
    """Gives models with the same weights."""

    def make() -> nn.Module:
        torch.manual_seed(0)
        return TinyClassifier(apla=dict(r=8))

    return make


@pytest.fixture
def whole(fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path) -> Path:
    """The folder of a run without deltas that was never cut."""
    train(make_runner, fresh(), tmp_path / "whole", delta=None)
    return tmp_path / "whole"


def deltas(folder: Path) -> list[str]:
    return sorted(path.name.removesuffix(".delta.safetensors") for path in folder.glob("*.delta.safetensors"))


def checkpoints(folder: Path) -> list[str]:
    return sorted(path.stem for path in folder.glob("*.pth"))


def test_each_delta_reads_as_its_checkpoint_which_is_that_of_a_run_without_deltas(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path, whole: Path
) -> None:
    folder = tmp_path / "work"
    train(make_runner, fresh(), folder)
    assert deltas(folder) == checkpoints(folder) == checkpoints(whole)
    (base,) = folder.glob("base-*.safetensors")
    for name in checkpoints(whole):
        full, saved = read_checkpoint(whole / f"{name}.pth"), read_checkpoint(folder / f"{name}.pth")
        assert saved.keys() == full.keys()
        assert_same_checkpoint(full, saved, tuple(part for part in PARTS if part in full))
        assert saved["meta"].keys() - full["meta"].keys() == {"apla_mm_base"}
        assert saved["meta"]["apla_mm_base"] == base.name
        assert saved["state_dict"]._metadata == full["state_dict"]._metadata
        path = folder / f"{name}.delta.safetensors"
        read = read_checkpoint(path)["state_dict"]
        assert_same(full["state_dict"], read)
        versions = read._metadata
        assert versions and versions.items() <= full["state_dict"]._metadata.items()
        delta = load_delta(path)
        assert delta.tensors.keys() == {"head.weight", "head.bias"}
        assert len(delta.rows) == 4 and {len(rows) for rows in delta.rows.values()} == {8}
        assert path.stat().st_size < (folder / f"{name}.pth").stat().st_size


def test_versions_of_modules_are_kept(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    model = fresh()
    model.head._version = 3
    train(make_runner, model, tmp_path)
    for name in ("iter_4.pth", "iter_4.delta.safetensors"):
        versions = read_checkpoint(tmp_path / name)["state_dict"]._metadata
        assert versions["head"] == {"version": 3} and versions["idle"] == {"version": 1}


def test_deltas_hold_the_ema(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = train(make_runner, fresh(), tmp_path / "work")
    (ema,) = (hook for hook in runner.hooks if type(hook).__name__ == "EMAHook")
    delta = read_checkpoint(tmp_path / "work/iter_4.delta.safetensors")["state_dict"]
    assert_same(ema.ema_model.module.state_dict(), delta)
    assert not torch.equal(runner.model.state_dict()["head.weight"], delta["head.weight"])


def test_checkpoint_that_the_hook_did_not_ask_for_has_no_delta_and_names_the_base(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    runner = train(make_runner, fresh(), tmp_path, iterations=1)
    runner.save_checkpoint(str(tmp_path), "mine.pth")
    (base,) = tmp_path.glob("base-*.safetensors")
    assert read_checkpoint(tmp_path / "mine.pth")["meta"]["apla_mm_base"] == base.name
    assert checkpoints(tmp_path) == [*deltas(tmp_path), "mine"]


@pytest.mark.parametrize("place", ["here", "elsewhere", "bases"])
def test_resumed_run_gives_the_weights_of_one_that_was_never_cut(
    fresh: Callable[[], nn.Module],
    make_runner: Callable[..., Runner],
    tmp_path: Path,
    whole: Path,
    place: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APLA_MM_BASES", "")
    delta = dict(DELTA, base_dir=str(tmp_path / "store")) if place == "bases" else DELTA
    first = tmp_path / "first"
    train(make_runner, fresh(), first, iterations=2, delta=delta)
    second = first if place != "elsewhere" else tmp_path / "second"
    monkeypatch.setenv("APLA_MM_BASES", "")  # as in a new process
    torch.manual_seed(5)  # other random weights, and nothing of them may stay
    other = TinyClassifier(apla=dict(r=8))
    resumed = dict(resume=True, load_from=None if second == first else str(first / "iter_2.pth"))
    train(make_runner, other, second, delta=delta, **resumed)
    full = read_checkpoint(whole / "iter_4.pth")
    assert_same_checkpoint(full, second / "iter_4.pth")
    assert_same(full["state_dict"], read_checkpoint(second / "iter_4.delta.safetensors")["state_dict"])
    names = {path.name for path in tmp_path.rglob("base-*.safetensors")}
    assert len(names) == 1
    folder = tmp_path / "store" if place == "bases" else second
    assert [path.name for path in folder.glob("base-*")] == list(names)
    assert bool(list(first.glob("base-*"))) == (place != "bases")


def test_run_goes_on_without_deltas(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], cut: Path, whole: Path
) -> None:
    (base,) = cut.glob("base-*")
    base.unlink()  # which a run without deltas does not need
    train(make_runner, fresh(), cut, delta=None, resume=True)
    read = read_checkpoint(cut / "iter_4.pth")
    assert_same_checkpoint(whole / "iter_4.pth", read)
    assert deltas(cut)[-1] == "iter_2" and "apla_mm_base" not in read["meta"]


def test_base_holds_the_weights_that_training_began_with_whatever_was_resumed(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    begin = clone(fresh().state_dict())
    begin["backbone.vit.pos_embed"] += 1  # of load_from, not of the model that was built
    torch.save(dict(state_dict=begin), tmp_path / "begin.pth")
    work = tmp_path / "work"
    train(make_runner, fresh(), work, iterations=2, load_from=str(tmp_path / "begin.pth"))
    train(make_runner, fresh(), work, resume=True)
    (base,) = work.glob("base-*.safetensors")
    frozen = {name: tensor for name, tensor in begin.items() if not name.startswith("head.")}
    assert_same(load_file(base), frozen)


def test_deltas_are_removed_with_their_checkpoints(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    work = tmp_path / "work"
    work.mkdir()
    (work / "mine.delta.safetensors").write_bytes(b"kept for another reason")
    (work / ".iter_1.delta.safetensors.node.17.part").write_bytes(b"half")
    train(make_runner, fresh(), work, max_keep_ckpts=3)
    kept = ["best_score_iter_4", "iter_2", "iter_3", "iter_4"]
    assert checkpoints(work) == kept and deltas(work) == sorted([*kept, "mine"])
    assert not list(work.glob(".*.part"))
    train(make_runner, fresh(), work, iterations=5, max_keep_ckpts=1, resume=True)
    assert checkpoints(work) == ["best_score_iter_4", "iter_5"] == deltas(work)[:2]
    assert deltas(work)[2:] == ["mine"]


def test_header_tells_what_was_trained_and_how_well(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    plain = TinyClassifier()
    train(make_runner, plain, tmp_path / "work", apla=dict(r=4, seed=7, blocks=[0], train_norm=True))
    header = load_delta(tmp_path / "work/iter_3.delta.safetensors").header
    assert (header.r, header.seed, header.iteration, header.metrics) == (4, 7, 3, {})
    train(make_runner, fresh(), tmp_path / "adapted", iterations=1)  # which the backbone did by itself
    adapted = load_delta(tmp_path / "adapted/iter_1.delta.safetensors").header
    assert (adapted.r, adapted.seed, adapted.selection["blocks"]) == (8, 0, [0, 1])
    best = load_delta(tmp_path / "work/best_score_iter_4.delta.safetensors").header
    assert (best.iteration, best.metrics) == (4, {"score": 3.0})
    assert header.selection["blocks"] == [0] and header.selection["train"]["norm"] is True
    assert Path(tmp_path / "work" / header.extra["base_file"]).is_file()
    assert {"apla_mm", "torch", "mmengine"} <= header.versions.keys()
    written = read_checkpoint(tmp_path / "work/iter_3.pth")["meta"]
    assert header.config == written["cfg"] and header.extra["base_file"] == written["apla_mm_base"]
    assert dict(r=header.r, seed=header.seed, **header.selection) == written["apla"]


class Moves(Hook):
    """Changes what is frozen: a parameter, and a row of a projection that was not chosen."""

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        layer = runner.model.backbone.vit.blocks[1].attn.proj
        row = next(i for i in range(32) if i not in layer.trained.channels)
        with torch.no_grad():
            runner.model.idle.weight += 1
            layer.weight[row] += 1


def test_what_is_frozen_and_moves_nevertheless_is_saved_whole(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    read = []
    for name, hook in (("without", None), ("with", DELTA)):
        train(make_runner, fresh(), tmp_path / name, hooks=(Moves(),), apla=dict(prove=False), delta=hook)
        read.append(read_checkpoint(tmp_path / name / "iter_4.pth"))
    assert_same_checkpoint(*read, ("state_dict", "ema_state_dict"))
    assert_same(read[0]["state_dict"], read_checkpoint(tmp_path / "with/iter_4.delta.safetensors")["state_dict"])
    delta = load_delta(tmp_path / "with/iter_4.delta.safetensors")
    moved = {"idle.weight", *(f"backbone.vit.blocks.1.attn.proj.{kind}" for kind in ("weight", "bias"))}
    assert delta.tensors.keys() == {"head.weight", "head.bias", *moved}
    assert delta.channels.keys() == {"backbone.vit.blocks.0.attn.proj"}


class MovesOnce(Hook):
    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter == 0:
            runner.model.idle.weight.data += 1


class Diverges(Hook):
    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter == 2:
            runner.model.head.weight.data[0, 0] = float("nan")


def test_nan_is_not_saved(fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    message = r"iter_3\.delta\.safetensors' was not written.*NaN or infinity in .*'head\.weight'"
    with pytest.raises(RuntimeError, match=rf"{message}.*; the last checkpoint is '{tmp_path}/iter_2\.pth'"):
        train(make_runner, fresh(), tmp_path, hooks=(Diverges(),), apla=dict(prove=False))
    assert checkpoints(tmp_path)[-1] == deltas(tmp_path)[-1] == "iter_2"


def test_what_cannot_be_written_costs_no_checkpoint(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    (tmp_path / "iter_3.delta.safetensors").mkdir()  # a folder in the way stands for a disk that is full
    with pytest.raises(RuntimeError, match=rf"the last checkpoint is '{tmp_path}/iter_2\.pth'"):
        train(make_runner, fresh(), tmp_path, max_keep_ckpts=1)
    assert read_checkpoint(tmp_path / "iter_2.pth")["meta"]["iter"] == 2


@pytest.fixture
def cut(fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path) -> Path:
    """The folder of a run of two iterations."""
    train(make_runner, fresh(), tmp_path / "cut", iterations=2)
    return tmp_path / "cut"


def test_run_without_its_base_is_not_resumed(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], cut: Path
) -> None:
    (base,) = cut.glob("base-*")
    base.unlink()
    before = checkpoints(cut)
    with pytest.raises(DeltaError, match=rf"needs its base, the file '{base.name}'"):
        train(make_runner, fresh(), cut, resume=True)
    assert not list(cut.glob("base-*")) and checkpoints(cut) == deltas(cut) == before


def test_run_with_another_base_under_that_name_is_not_resumed(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], cut: Path
) -> None:
    (base,) = cut.glob("base-*")
    state = load_file(base)
    state["idle.weight"] += 1
    save_file(state, base)
    before = checkpoints(cut)
    with pytest.raises(DeltaError, match="by its tensors it would be called"):
        train(make_runner, fresh(), cut, resume=True)
    assert list(cut.glob("base-*")) == [base] and checkpoints(cut) == deltas(cut) == before


def test_run_in_which_what_is_frozen_has_moved_is_resumed(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    for work, iterations in (("whole", 4), ("work", 2)):
        train(make_runner, fresh(), tmp_path / work, iterations, (MovesOnce(),), dict(prove=False))
    train(make_runner, fresh(), tmp_path / "work", apla=dict(prove=False), resume=True)
    read = [read_checkpoint(tmp_path / work / "iter_4.pth") for work in ("whole", "work")]
    assert_same(read[0]["state_dict"], read[1]["state_dict"])
    assert_same(read[1]["state_dict"], read_checkpoint(tmp_path / "work/iter_4.delta.safetensors")["state_dict"])
    log = log_of(tmp_path / "work")
    assert re.search(
        r"1 of \d+ tensors that do not train are not those of the base .* saved whole: 'idle\.weight'", log
    )


@pytest.mark.parametrize("change", ["differ", "lack"])
def test_run_of_another_base_is_not_resumed(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], cut: Path, change: str
) -> None:
    (base,) = cut.glob("base-*")
    state = load_file(base)
    other = {n: t + 1 for n, t in state.items()} if change == "differ" else {"idle.weight": state["idle.weight"]}
    path = save_base(other, cut)
    checkpoint = read_checkpoint(cut / "iter_2.pth")
    checkpoint["meta"]["apla_mm_base"] = path.name
    torch.save(checkpoint, cut / "iter_2.pth")
    message = "all of its tensors differ" if change == "differ" else "'backbone.* are in one alone"
    with pytest.raises(DeltaError, match=f"{path}' is not the base of the run that is resumed: {message}"):
        train(make_runner, fresh(), cut, resume=True)


def without_idle(model: nn.Module, renamed: bool) -> nn.Module:
    """The same model, in which all that is frozen has names that begin alike."""
    del model.idle
    if renamed:
        backbone = property(lambda self: self.encoder)
        model.encoder = model.backbone
        del model.backbone
        model.__class__ = type("Renamed", (type(model),), dict(backbone=backbone))
    return model


def test_base_is_shared_by_runs_that_call_it_otherwise(
    fresh: Callable[[], nn.Module],
    make_runner: Callable[..., Runner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APLA_MM_BASES", "")
    delta = dict(DELTA, base_dir=str(tmp_path / "store"))
    train(make_runner, without_idle(fresh(), False), tmp_path / "one", delta=delta)
    train(make_runner, without_idle(fresh(), True), tmp_path / "other", iterations=2, delta=delta)
    assert len(list((tmp_path / "store").glob("*"))) == 1
    train(make_runner, without_idle(fresh(), True), tmp_path / "other", delta=delta, resume=True)
    one, other = (read_checkpoint(tmp_path / name / "iter_4.delta.safetensors") for name in ("one", "other"))
    assert_same({k.replace("backbone", "encoder"): v for k, v in one["state_dict"].items()}, other["state_dict"])


def test_run_that_only_validates_finds_the_base_where_its_hook_has_it(
    fresh: Callable[[], nn.Module],
    make_runner: Callable[..., Runner],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("APLA_MM_BASES", str(tmp_path / "others"))
    delta = dict(DELTA, base_dir=str(tmp_path / "store"))
    train(make_runner, fresh(), tmp_path / "work", iterations=2, delta=delta)
    path = tmp_path / "work/iter_2.delta.safetensors"
    expected = read_checkpoint(path)["state_dict"]
    monkeypatch.setenv("APLA_MM_BASES", str(tmp_path / "others"))  # as in a new process
    metric = Score()
    metric.scores = [1.0]
    runner = make_runner(
        TinyClassifier(),
        load_from=str(path),
        custom_hooks=[delta],
        val_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32), labels=0)]),
        val_cfg=dict(),
        val_evaluator=Evaluator(metric),
    )
    runner.val()
    assert_same(runner.model.state_dict(), expected)
    assert os.environ["APLA_MM_BASES"].split(os.pathsep) == [str(tmp_path / "store"), str(tmp_path / "others")]
    assert checkpoints(tmp_path / "work")[-1] == deltas(tmp_path / "work")[-1] == "iter_2"


def test_infinite_buffer_is_refused_before_training(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    model = fresh()
    model.head.register_buffer("mask", torch.tensor([0.0, -float("inf")]))
    with pytest.raises(DeltaError, match=r"NaN or infinity in 'head\.mask'.*persistent=False"):
        train(make_runner, model, tmp_path)
    assert not checkpoints(tmp_path)


def test_metainfo_comes_back_as_it_was(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    meta = dict(classes=("a", "b"), palette=[(1, 2, 3), (4, 5, 6)], label_map={0: 1, 1: 0}, pairs={(0, 1): "x"})

    class Adds(Hook):
        def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
            checkpoint["meta"]["dataset_meta"] = {**meta, "array": np.arange(2)}
            checkpoint["meta"]["odd"] = object

    train(make_runner, fresh(), tmp_path, iterations=2, hooks=(Adds(),))
    read = read_checkpoint(tmp_path / "iter_2.delta.safetensors")["meta"]
    assert read["dataset_meta"] == {**meta, "array": [0, 1]} and read["iter"] == 2
    assert type(read["dataset_meta"]["palette"][0]) is tuple
    log = log_of(tmp_path)
    assert "a delta cannot hold 'odd' of the checkpoint's meta" in log


@pytest.mark.parametrize("difference", ["classes", "prefix", "part"])
def test_delta_of_another_model_is_refused_and_nothing_loaded(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], cut: Path, difference: str
) -> None:
    name = "iter_2.delta.safetensors"
    model: nn.Module = fresh()
    if difference == "classes":
        model.head = nn.Linear(32, 7)
        message = r"'head\.bias \(\(3,\), not \(7,\)\)', 'head\.weight .*are of another shape"
    elif difference == "prefix":
        model = nn.ModuleDict(dict(net=model))
        message = r"it lacks 'net\.backbone.*; the model lacks 'backbone"
    else:
        model.extra = nn.Linear(2, 2)
        message = r"it lacks 'extra\.bias', 'extra\.weight'"
    before = clone(model.state_dict())
    with pytest.raises(DeltaError, match=rf"{name}' is not of this model, and nothing was loaded: .*{message}"):
        load_checkpoint(model, str(cut / name))
    if difference == "classes":
        with pytest.raises(DeltaError, match=message):
            make_runner(model, load_from=str(cut / name)).train()
    assert_same(before, model.state_dict())


def test_delta_is_loaded_into_a_model_that_lacks_some_of_it(fresh: Callable[[], nn.Module], cut: Path) -> None:
    model = fresh()
    expected = read_checkpoint(cut / "iter_2.delta.safetensors")["state_dict"]
    del model.idle
    load_checkpoint(model, str(cut / "iter_2.delta.safetensors"))
    assert_same(model.state_dict(), {k: v for k, v in expected.items() if not k.startswith("idle")})


def test_weights_on_a_gpu_are_saved_from_there() -> None:
    with FakeTensorMode():
        state = {"proj.weight": torch.empty(4, 2, device="cuda"), "head.weight": torch.empty(3, 4, device="cuda")}
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(make, "base_digests", lambda tensors, channels: dict.fromkeys(tensors, "0" * 64))
            patch.setattr(make.Delta, "check", lambda *_, **__: None)  # reads values, and there are none
            delta = extract_delta_from_digests(state, {"proj.weight": "0" * 64}, {"proj": torch.tensor([1, 3])})
    assert delta.rows["proj.weight"].shape == (2, 2) and delta.tensors.keys() == {"head.weight"}
    assert {t.device.type for t in (*delta.rows.values(), *delta.tensors.values())} == {"cpu"}


def test_run_that_wrote_no_deltas_is_not_resumed_with_them(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], whole: Path
) -> None:
    with pytest.raises(ValueError, match="names no base file.*resume without it"):
        train(make_runner, fresh(), whole, resume=True, load_from=str(whole / "iter_2.pth"))
    assert not list(whole.glob("*.safetensors"))


@pytest.mark.parametrize("hook", [None, DELTA], ids=["without", "with"])
def test_delta_is_not_resumed_and_the_checkpoint_beside_it_named(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], cut: Path, hook: dict | None
) -> None:
    delta = cut / "iter_2.delta.safetensors"
    with pytest.raises(ValueError, match=rf"no optimizer.*resume from '{cut}/iter_2\.pth'"):
        train(make_runner, fresh(), cut, delta=hook, resume=True, load_from=str(delta))
    (cut / "iter_2.pth").unlink()
    with pytest.raises(ValueError, match=r"resume from a \.pth of the run"):
        train(make_runner, fresh(), cut, delta=hook, resume=True, load_from=str(delta))


@pytest.mark.parametrize("name", ["iter_2.pth", "iter_2.delta.safetensors"])
def test_training_begins_with_the_weights_of_a_delta(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], cut: Path, name: str
) -> None:
    torch.manual_seed(5)
    runner = make_runner(TinyClassifier(apla=dict(r=8)), load_from=str(cut / name))
    runner.load_or_resume()
    assert_same(runner.model.state_dict(), read_checkpoint(cut / "iter_2.delta.safetensors")["state_dict"])


def test_another_checkpoint_hook_is_refused(
    fresh: Callable[[], nn.Module], make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    for checkpoint in (dict(type="CheckpointHook"), None):
        with pytest.raises(ValueError, match=r"default_hooks\.checkpoint\.type='AtomicCheckpointHook'"):
            train(make_runner, fresh(), tmp_path, default_hooks=dict(checkpoint=checkpoint))
    assert not list(tmp_path.glob("*.safetensors"))


def test_what_shards_and_what_is_no_local_disk_are_refused() -> None:
    runner = FlexibleRunner.__new__(FlexibleRunner)
    runner.optim_wrapper = OptimWrapper.__new__(OptimWrapper)  # as of a runner that is about to train
    with pytest.raises(ValueError, match=r"not for FlexibleRunner.*apla-mm extract"):
        DeltaHook().before_run(runner)
    with pytest.raises(ValueError, match="local disks alone, and checkpoints go to 'http://there'"):
        DeltaHook().begin(runner, "http://there", HTTPBackend())


def test_no_deltas_are_written_unless_asked(whole: Path) -> None:
    assert not list(whole.glob("*.safetensors"))
    assert "apla_mm_base" not in read_checkpoint(whole / "iter_4.pth")["meta"]
