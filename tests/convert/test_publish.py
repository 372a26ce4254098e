"""Files for others to use."""

import datetime
import hashlib
import re
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.comparisons import assert_same

from apla_mm.convert.publish import publish
from apla_mm.delta import load_delta, save_delta
from apla_mm.loading.checkpoint_reader import read_checkpoint

DAY = datetime.date(2026, 3, 9)


def check_name(path, start, suffix):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert path.name == f"{start}_20260309-{digest}{suffix}"


@pytest.mark.parametrize("out", ["setr_ade20k", "setr_ade20k.pth", "v1.5_setr"])
def test_a_checkpoint_is_stripped_and_named(trained, tmp_path, out):
    before = read_checkpoint(trained.last)
    last = tmp_path / "work/last.pth"
    last.parent.mkdir()
    resuming = dict(apla_mm='{"config": {}, "trains": {}}', apla_mm_base="base-0123456789abcdef.safetensors")
    torch.save({**before, "meta": {**before["meta"], **resuming}}, last)
    path = publish(last, tmp_path / "out" / out, date=DAY)
    check_name(path, out.removesuffix(".pth"), ".pth")
    after = read_checkpoint(path)
    assert {"optimizer", "message_hub", "param_schedulers"} & before.keys()
    assert after.keys() == {"meta", "state_dict"} and after["meta"] == before["meta"]
    assert_same(after["state_dict"], before["state_dict"])
    assert after["state_dict"]._metadata == before["state_dict"]._metadata
    assert path.stat().st_size < trained.last.stat().st_size
    data = path.read_bytes()
    with pytest.raises(FileExistsError, match="--force"):
        publish(last, tmp_path / "out" / out, date=DAY)
    assert publish(last, tmp_path / "out" / out, date=DAY, force=True) == path and path.read_bytes() == data
    assert [path] == list((tmp_path / "out").iterdir())


def test_a_delta_is_published_as_it_is(delta, tmp_path, run_tool):
    path = publish(delta, tmp_path / "out/task", date=DAY)
    check_name(path, "task", ".safetensors")
    assert path.read_bytes() == delta.read_bytes()
    output = run_tool("publish", delta, tmp_path / "tool/task.safetensors")
    (made,) = (tmp_path / "tool").iterdir()
    assert re.fullmatch(r"task_\d{8}-[0-9a-f]{8}\.safetensors", made.name)
    assert str(made) in output and f"publish the file {load_delta(delta).header.extra['base_file']}" in output


def test_what_cannot_be_published(trained, delta, tmp_path, run_tool):
    (base,) = (tmp_path / "bases").iterdir()
    with pytest.raises(SystemExit, match="publish it under the name that it has"):
        run_tool("publish", base, tmp_path / "out/x")
    torch.save({"state_dict": {"attn.proj_weight1": torch.ones(1, 2)}}, tmp_path / "authors.pth")
    with pytest.raises(SystemExit, match="import-apla"):
        run_tool("publish", tmp_path / "authors.pth", tmp_path / "out/x")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(delta.read_bytes()[:-7])
    with pytest.raises(SystemExit, match="damaged"):
        run_tool("publish", cut, tmp_path / "out/x")
    flipped = bytearray(delta.read_bytes())
    flipped[-1] ^= 1
    cut.write_bytes(flipped)
    with pytest.raises(SystemExit, match="SHA-256"):
        run_tool("publish", cut, tmp_path / "out/x")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["pth", "safetensors", "delta"])
def test_nan_is_published_only_if_allowed(delta, tmp_path, run_tool, kind):
    state, path = {"head.bias": torch.tensor([1.0, torch.inf])}, tmp_path / f"nan.{kind}"
    if kind == "pth":
        torch.save(dict(state_dict=state, meta={}), path)
    elif kind == "safetensors":
        safetensors.torch.save_file(state, path)
    else:
        save_delta(replace(load_delta(delta), tensors=state), path, allow_nonfinite=True)
    with pytest.raises(SystemExit, match=rf"nan.{kind}': .*in 'head.bias'.*--allow-nonfinite$"):
        run_tool("publish", path, tmp_path / "out/x")
    assert not (tmp_path / "out").exists()
    run_tool("publish", path, tmp_path / "out/x", "--allow-nonfinite")
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_meta_is_published_without_objects_of_unknown_types(tmp_path):
    path, state = tmp_path / "c.pth", dict(a=torch.ones(2))
    meta = dict(dataset_meta=dict(classes=("a", "b"), palette=np.ones((2, 3))), iter=np.int64(3))
    torch.save(dict(state_dict=state, meta=meta), path)
    read = read_checkpoint(publish(path, tmp_path / "out/x"))["meta"]
    assert read["iter"] == 3 and read["dataset_meta"]["classes"] == ("a", "b")
    assert np.array_equal(read["dataset_meta"]["palette"], np.ones((2, 3)))
    torch.save(dict(state_dict=state, meta=dict(meta, odd=[datetime.timezone, object])), path)
    with pytest.raises(ValueError, match="holds objects of unknown types in its meta: see 'odd'"):
        publish(path, tmp_path / "out/y")
    assert len(list((tmp_path / "out").iterdir())) == 1
