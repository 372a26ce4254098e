"""Full checkpoint -> delta and base file -> the same full checkpoint."""

import json
import shutil
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.comparisons import assert_same
from helpers.processes import run
from helpers.tools import CONVERTERS
from mmengine.runner import load_checkpoint

from apla_mm.convert.full_checkpoint import delta_of
from apla_mm.delta import load_delta
from apla_mm.delta.weights_file import Weights, read_weights
from apla_mm.loading.checkpoint_reader import mmengines_types, read_checkpoint
from apla_mm.tuning.apla_hook import APLAHook


def test_there_and_back_by_the_tools(trained, tmp_path, monkeypatch, run_tool):
    delta_path = tmp_path / "deltas/task.safetensors"
    made = run(CONVERTERS / "extract_delta.py", trained.last, trained.base, delta_path)
    (base,) = (tmp_path / "deltas/bases").iterdir()
    assert "channels of 2 projections, 7 whole tensors" in made.stdout and str(base) in made.stdout

    delta = load_delta(delta_path)
    assert {name: chosen.tolist() for name, chosen in delta.channels.items()} == trained.channels
    assert delta.header.extra["base_file"] == base.name and delta.header.iteration == 4
    assert base.stat().st_size < trained.last.stat().st_size
    frozen = safetensors.torch.load_file(base)
    assert frozen.keys() == trained.state.keys() - delta.tensors.keys()
    assert_same(frozen, {name: trained.before[name] for name in frozen})

    # the delta's folder moves, and the base is in a folder that a variable names
    moved, elsewhere = tmp_path / "moved/x.safetensors", tmp_path / "elsewhere"
    moved.parent.mkdir()
    shutil.copy(delta_path, moved)
    shutil.move(tmp_path / "deltas/bases", elsewhere)
    out = tmp_path / "merged.pth"
    monkeypatch.delenv("APLA_MM_BASES", raising=False)
    with pytest.raises(SystemExit, match=base.name):
        run_tool("merge_delta", moved, out)
    assert not out.exists()
    run(CONVERTERS / "merge_delta.py", moved, out, env=dict(APLA_MM_BASES=str(elsewhere)))
    checkpoint, full = read_checkpoint(out), read_checkpoint(trained.last)
    assert_same(checkpoint["state_dict"], full["state_dict"])
    assert_same(checkpoint["state_dict"], trained.state)
    for key in ("iter", "epoch", "cfg", "experiment_name", "seed", "mmengine_version", "apla"):
        assert checkpoint["meta"][key] == full["meta"][key], key
    assert checkpoint["meta"]["dataset_meta"] == full["meta"]["dataset_meta"]
    assert checkpoint.keys() == {"meta", "state_dict"}
    assert out.stat().st_size < trained.last.stat().st_size


def test_mmengine_loads_what_was_merged(trained, tmp_path, run_tool):
    run_tool("extract_delta", trained.last, trained.base, tmp_path / "d.safetensors")
    run_tool("merge_delta", tmp_path / "d.safetensors", tmp_path / "m.pth")
    model = torch.nn.ModuleDict(dict(norm=torch.nn.BatchNorm1d(32), head=torch.nn.Linear(32, 3)))
    checkpoint = load_checkpoint(model, str(tmp_path / "m.pth"))
    assert_same(model.state_dict(), {name: trained.state[name] for name in model.state_dict()})
    assert checkpoint["meta"]["dataset_meta"]["classes"] == ("cat", "dog", "owl")
    versions = read_checkpoint(trained.last)["state_dict"]._metadata  # BatchNorm's is 2
    assert checkpoint["state_dict"]._metadata["norm"] == versions["norm"] == dict(version=2)
    assert checkpoint["state_dict"]._metadata["head"] == versions["head"] == dict(version=1)


def test_pretrained_weights_are_a_base_too(trained, tmp_path, run_tool):
    delta = tmp_path / "d.safetensors"
    run_tool("extract_delta", trained.last, trained.vit, delta, "--base-prefix", "backbone.vit.")
    for base in ([], ["--base", trained.vit, "--base-prefix", "backbone.vit."], ["--base", trained.base]):
        out = tmp_path / "m.safetensors"
        run_tool("merge_delta", delta, out, *base, "--force")
        assert_same(safetensors.torch.load_file(out), trained.state)
    with pytest.raises(SystemExit, match="nothing of the checkpoint is equal in the base.*--base-prefix"):
        run_tool("extract_delta", trained.last, trained.vit, tmp_path / "e.safetensors")
    assert not (tmp_path / "e.safetensors").exists()


def test_one_base_serves_several_deltas(trained, tmp_path, run_tool):
    for name, checkpoint in (("a", trained.last), ("b", trained.best)):
        run_tool("extract_delta", checkpoint, trained.base, tmp_path / f"{name}.safetensors")
    (base,) = (tmp_path / "bases").iterdir()
    # the next one from the base file, which comes out as it was
    run_tool("extract_delta", trained.last, base, tmp_path / "c.safetensors")
    assert [base] == list((tmp_path / "bases").iterdir())
    one, other = (load_delta(tmp_path / f"{name}.safetensors") for name in "ac")
    assert one.header.extra["base_file"] == other.header.extra["base_file"] == base.name


def test_metrics_are_those_of_the_weights_or_none(trained, tmp_path, run_tool):
    delta = tmp_path / "d.safetensors"
    hub = read_checkpoint(trained.last)["message_hub"]["log_scalars"]
    assert "val/accuracy" in hub  # of the validation two iterations before
    run_tool("extract_delta", trained.last, trained.base, delta)
    assert load_delta(delta).header.metrics == {}
    run_tool("extract_delta", trained.best, trained.base, delta, "--force")
    assert load_delta(delta).header.metrics == {"accuracy": 0.5}
    (tmp_path / "m.json").write_text('{"mIoU": 51.5}')
    run_tool("extract_delta", trained.last, trained.base, delta, "--metrics", tmp_path / "m.json", "--force")
    assert load_delta(delta).header.metrics == {"mIoU": 51.5}


def test_arrays_in_meta_come_back_as_lists(trained, tmp_path, run_tool):
    checkpoint = read_checkpoint(trained.last)
    checkpoint["meta"]["dataset_meta"] = dict(classes=("cat", "dog"), palette=np.eye(2, 3, dtype=np.uint8))
    torch.save(checkpoint, tmp_path / "c.pth")
    run_tool("extract_delta", tmp_path / "c.pth", trained.base, tmp_path / "d.safetensors")
    run_tool("merge_delta", tmp_path / "d.safetensors", tmp_path / "m.pth")
    expected = dict(classes=("cat", "dog"), palette=[[1, 0, 0], [0, 1, 0]])
    assert read_checkpoint(tmp_path / "m.pth")["meta"]["dataset_meta"] == expected


def test_channels_may_be_given(trained, tmp_path, run_tool):
    delta, lists = tmp_path / "d.safetensors", tmp_path / "c.json"
    base = OrderedDict(trained.before)
    name = next(iter(trained.channels))
    rows = trained.channels[name]
    base[f"{name}.weight"] = base[f"{name}.weight"].clone()
    base[f"{name}.bias"] = base[f"{name}.bias"].clone()
    for kind in ("weight", "bias"):  # a channel that trained and came out as it was
        base[f"{name}.{kind}"][rows[0]] = trained.state[f"{name}.{kind}"][rows[0]]
    torch.save(base, tmp_path / "base.pth")
    run_tool("extract_delta", trained.last, tmp_path / "base.pth", delta)
    assert load_delta(delta).channels[name].tolist() == rows[1:]
    lists.write_text(json.dumps({key.removeprefix("backbone.vit."): value for key, value in trained.channels.items()}))
    run_tool("extract_delta", trained.last, tmp_path / "base.pth", delta, "--channels", lists, "--force")
    assert {key: value.tolist() for key, value in load_delta(delta).channels.items()} == trained.channels
    run_tool("merge_delta", delta, tmp_path / "m.pth")
    assert_same(read_checkpoint(tmp_path / "m.pth")["state_dict"], trained.state)


@pytest.mark.parametrize(
    ("lists", "error"),
    [
        ({"blocks.0.attn.proj": [0, 1]}, "differ from the base, and are not among the channels"),
        ({"attn.proj": [0]}, "of the checkpoint's tensors 2 are called so"),
        ({"blocks.9.attn.proj": [0]}, "of the checkpoint's tensors 0 are called so"),
        ({"blocks.0.attn.proj": [0, 0]}, "must be distinct"),
        ({"blocks.0.attn.proj": [-1]}, "not negative"),
        ({"blocks.0.attn.proj": ["1"]}, "must be ints"),
        ({"blocks.0.attn.proj": [32]}, "not all in [0, 32)"),
        ([1], "must hold one object"),
    ],
)
def test_channels_that_do_not_fit_are_refused(trained, tmp_path, run_tool, lists, error):
    (tmp_path / "c.json").write_text(json.dumps(lists))
    out = tmp_path / "d/d.safetensors"
    with pytest.raises(SystemExit) as stopped:
        run_tool("extract_delta", trained.last, trained.base, out, "--channels", tmp_path / "c.json")
    assert error in str(stopped.value) and not out.parent.exists()


def test_an_existing_file_is_kept_without_force(trained, tmp_path, run_tool):
    out = tmp_path / "d.safetensors"
    run_tool("extract_delta", trained.last, trained.base, out)
    data, kept = out.read_bytes(), tmp_path / "m.pth"
    kept.write_text("mine")
    with pytest.raises(SystemExit, match="--force"):
        run_tool("extract_delta", trained.best, trained.base, out)
    with pytest.raises(SystemExit, match="--force"):
        run_tool("merge_delta", out, kept)
    assert out.read_bytes() == data and kept.read_text() == "mine"
    run_tool("merge_delta", out, kept, "--force")
    assert read_checkpoint(kept)["meta"]["iter"] == 4
    with pytest.raises(SystemExit, match=r"must end in .pth or .safetensors"):
        run_tool("merge_delta", out, tmp_path / "m.bin")
    assert {path.name for path in tmp_path.iterdir()} == {"d.safetensors", "m.pth", "bases"}


def test_another_base_needs_no_check(trained, tmp_path, run_tool):
    delta, out = tmp_path / "d.safetensors", tmp_path / "m.pth"
    run_tool("extract_delta", trained.last, trained.base, delta)
    other = {**trained.before, "backbone.vit.cls_token": trained.before["backbone.vit.cls_token"] + 1}
    torch.save(other, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match="'backbone.vit.cls_token'.* regardless by --no-check$"):
        run_tool("merge_delta", delta, out, "--base", tmp_path / "other.pth")
    assert not out.exists()
    run_tool("merge_delta", delta, out, "--base", tmp_path / "other.pth", "--no-check")
    state = read_checkpoint(out)["state_dict"]
    assert torch.equal(state["backbone.vit.cls_token"], other["backbone.vit.cls_token"])
    with pytest.raises(SystemExit, match=r"is a delta.*apla-mm merge"):
        run_tool("merge_delta", delta, tmp_path / "n.pth", "--base", delta)


def test_nan_is_refused_before_the_base_is_written(trained, tmp_path, run_tool):
    state = {**trained.state, "head.bias": torch.full((3,), torch.nan)}
    torch.save(dict(state_dict=state, meta={}), tmp_path / "nan.pth")
    folder, out = tmp_path / "deltas", tmp_path / "m.pth"
    refused = "NaN or infinity in 'head.bias'.* or allow it by --allow-nonfinite$"
    with pytest.raises(SystemExit, match=refused):
        run_tool("extract_delta", tmp_path / "nan.pth", trained.base, folder / "d.safetensors")
    assert not folder.exists()
    run_tool("extract_delta", tmp_path / "nan.pth", trained.base, folder / "d.safetensors", "--allow-nonfinite")
    with pytest.raises(SystemExit, match=refused):
        run_tool("merge_delta", folder / "d.safetensors", out)
    run_tool("merge_delta", folder / "d.safetensors", out, "--allow-nonfinite")
    assert_same(torch.load(out, weights_only=True)["state_dict"], state)


def test_a_new_bias_has_no_channels(trained, tmp_path, run_tool):
    name = next(iter(trained.channels))
    torch.save({n: t for n, t in trained.before.items() if n != f"{name}.bias"}, tmp_path / "base.pth")
    (tmp_path / "c.json").write_text(json.dumps(trained.channels))
    with pytest.raises(SystemExit, match=f"there is no '{name}.bias' of one shape in both states"):
        arguments = (trained.last, tmp_path / "base.pth", tmp_path / "d.safetensors")
        run_tool("extract_delta", *arguments, "--channels", tmp_path / "c.json")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("[1]", "of type list"),
        ("3", "of type int"),
        ('"ab"', "of type str"),
        ("{", "is not JSON"),
        ("[" * 9999, "JSON"),
    ],
)
def test_scores_must_be_an_object(trained, tmp_path, run_tool, text, error):
    (tmp_path / "scores.json").write_text(text)
    with pytest.raises(SystemExit, match=rf"scores.json' .*{error}.*: it must hold one object"):
        arguments = (trained.last, trained.base, tmp_path / "d.safetensors")
        run_tool("extract_delta", *arguments, "--metrics", tmp_path / "scores.json")


def test_what_the_run_was_asked_for_is_read_from_its_checkpoint(trained):
    weights = read_weights(trained.last, known=mmengines_types())
    header = delta_of(weights, trained.before)[0].header
    assert (header.r, header.seed, header.iteration) == (8, 3, 4)
    assert header.selection["blocks"] == [0, 1]
    assert dict(r=header.r, seed=header.seed, **header.selection) == weights.meta["apla"]


@pytest.mark.parametrize(
    "arguments",
    [
        dict(r=0.25, depth=3),
        dict(r=8, seed=2, train_norm=True, target="backbone.vit", trainable=["head.*"], recompute="block"),
        dict(channels={"blocks.0.attn.proj": [1, 4]}, train_bias=True),
        dict(blocks="none", target=["backbone", "neck"], train_pos_embed=True),
        dict(r=8, blocks=(0, 2)),
        dict(),  # adapts nothing
    ],
)
def test_all_that_the_hook_was_given_is_in_the_header(trained, tmp_path, arguments):
    hook, checkpoint = APLAHook(**arguments), dict(meta={}, state_dict=trained.state)
    hook.before_save_checkpoint(SimpleNamespace(model=torch.nn.Module()), checkpoint)
    torch.save(checkpoint, tmp_path / "c.pth")
    header = delta_of(read_weights(tmp_path / "c.pth"), trained.before)[0].header
    given = {key: value for key, value in arguments.items() if key in ("recompute", "trainable", "channels", "blocks")}
    for key in ("norm", "bias", "pos_embed"):
        if f"train_{key}" in arguments:
            given.setdefault("train", dict(norm=False, bias=False, pos_embed=False))[key] = True
    if "target" in arguments:
        given["target"] = [arguments["target"]] if isinstance(arguments["target"], str) else arguments["target"]
    assert json.loads(json.dumps(given)).items() <= header.selection.items()
    assert bool(header.selection) == bool(arguments)
    # where the run was given none, r is as many as differ
    assert header.r == arguments.get("r", 8) and header.seed == (arguments.get("seed", 0) if arguments else None)


@pytest.mark.parametrize("asked", [None, [8], dict(r=True, seed="3"), dict(r=[8], seed=1.0), {(1, 2): 3}])
def test_a_record_of_another_kind_is_left_out(trained, asked):
    weights = Weights(trained.state, dict(meta=dict(cfg="x = 1", iter=9, apla=asked)))
    header = delta_of(weights, trained.before)[0].header
    assert (header.r, header.seed, header.config, header.iteration) == (8, None, "x = 1", 9)  # r: as many as differ
    header = delta_of(Weights(trained.state, dict(meta=dict(cfg=3, iter="9"))), trained.before)[0].header
    assert (header.r, header.seed, header.config, header.iteration) == (8, None, "", None)
    header = delta_of(Weights(trained.state), trained.before)[0].header
    assert (header.r, header.seed, header.selection, header.config) == (8, None, {}, "")
