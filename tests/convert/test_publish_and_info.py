"""Files for others to use, and what is said of files."""

import datetime
import hashlib
import re
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from apla_mm.convert.info import describe
from apla_mm.convert.publish import publish
from apla_mm.delta import load_delta, save_delta
from apla_mm.runs.checkpoint_reader import read_checkpoint
from apla_mm.runs.packed_state import pack

DAY = datetime.date(2026, 3, 9)


@pytest.fixture
def delta(trained, tmp_path, run_tool):
    run_tool("extract_delta", trained.best, trained.base, tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


def check_name(path, start, suffix):
    digest = hashlib.sha256(path.read_bytes()).hexdigest()[:8]
    assert path.name == f"{start}_20260309-{digest}{suffix}"


@pytest.mark.parametrize("out", ["setr_ade20k", "setr_ade20k.pth", "v1.5_setr"])
def test_a_checkpoint_is_stripped_and_named(trained, tmp_path, assert_same, out):
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
    with pytest.raises(SystemExit, match="import_apla"):
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


@pytest.mark.parametrize("tool", ["info", "publish", "extract_delta"])
def test_what_is_no_plain_state_dict_is_named(tmp_path, run_tool, capsys, tool):
    plain, path, folder = tmp_path / "plain.pth", tmp_path / "odd\x1b[2J.pth", tmp_path / "folder"
    torch.save({"b": torch.ones(2)}, plain)
    folder.mkdir()
    odd = {
        "'0 (its key is of type int)'": {0: torch.ones(1)},
        r"'a\x1b[2J (without values)'": {"a\x1b[2J": torch.ones(1, device="meta")},
        "'a (sparse or quantized)'": dict(state_dict={"a": torch.ones(2).to_sparse(), "b": torch.ones(1)}),
        "'a (torch.complex128, which": {"a": torch.ones(2, dtype=torch.complex128)},
        "'a (of type int, no tensor)'": {"a": 1},
        "holds a list, not a checkpoint": [1],
        "is not a file, but a folder": None,
    }
    for error, content in odd.items():
        torch.save(content, path)
        more = dict(info=[], publish=[tmp_path / "out/x"], extract_delta=[plain, tmp_path / "out/d.safetensors"])[tool]
        with pytest.raises(SystemExit) as stopped:
            run_tool(tool, folder if content is None else path, *more)
        said = str(stopped.value) + capsys.readouterr().err
        assert error in said and "\x1b" not in said
    header = b'{"a": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}'  # which torch has not
    (folder / "odd.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(SystemExit) as stopped:
        run_tool(tool, folder / "odd.safetensors", *more)
    assert "F6_E2M3" in str(stopped.value) + capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_info_of_a_delta(trained, delta, monkeypatch, tmp_path):
    monkeypatch.delenv("APLA_MM_BASES", raising=False)
    (base,) = (tmp_path / "bases").iterdir()
    text = describe(delta)
    header = load_delta(delta).header
    for said in (
        "delta, version 1",
        "8 of each of 2 projections",
        f"{header.fingerprint}",
        f"{base.name}, found: {base}",
        "accuracy 0.5",
        "3: cat, dog, owl",
        f"torch {torch.__version__}",
    ):
        assert said in text, said
    assert re.search(r"iteration +2\n", text) and "NOT" not in text
    # the base's identity is told in the same words of both files, and another digest is not taken for it
    (identity,) = re.findall(r"whole base +fingerprint ([0-9a-f]{16})\.\.\., file base-\1", text)
    assert re.search(rf"whole base +fingerprint {identity}[0-9a-f]{{48}}$", describe(base))
    assert re.search(rf"not trained +{len(header.base)} tensors of the base, fingerprint {header.fingerprint}\n", text)
    base.unlink()
    assert f"{base.name}, NOT FOUND" in describe(delta)


def test_info_of_a_checkpoint_without_its_base(trained, delta, monkeypatch, tmp_path):
    monkeypatch.delenv("APLA_MM_BASES", raising=False)
    whole, path = read_checkpoint(trained.best), tmp_path / "slim.pth"
    torch.save({**whole, "state_dict": pack(load_delta(delta))}, path)  # as APLAHook(save="delta") does
    (base,) = (tmp_path / "bases").iterdir()
    for found in (f"found: {base}", "NOT FOUND"):
        text = describe(path)
        for said in (
            "checkpoint of mmengine without its base",
            "8 of each of 2 projections",
            f"{base.name}, {found}",
            "message_hub",
            "accuracy 0.5",
            "3: cat, dog, owl",
        ):
            assert said in text, said
        assert re.search(r"iteration +2\n", text)
        base.unlink(missing_ok=True)


def test_info_of_the_others(trained, delta, tmp_path, start_tool):
    (base,) = (tmp_path / "bases").iterdir()
    torch.save({"attn.proj_weight1": torch.ones(1, 2), "attn.proj_weight2": torch.ones(1, 2)}, tmp_path / "authors.pth")
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"PK not really")
    files = (trained.last, trained.vit, base, tmp_path / "authors.pth", bad, tmp_path / "none.pth", delta)
    done = start_tool("info", *files)
    kinds = re.findall(r"kind +(.*)", done.stdout)
    assert kinds == [
        "full checkpoint of mmengine",
        "plain safetensors",
        "base file",
        "checkpoint of the APLA authors' code: projections in two parts",
        "delta, version 1 of the format",
    ]
    assert done.returncode == 1 and "bad.pth" in done.stderr and "none.pth': no such file" in done.stderr
    assert "Traceback" not in done.stderr
    assert "also holds    message_hub, optimizer" in done.stdout and "'inds' are missing" in done.stdout
    count = sum(tensor.numel() for tensor in safetensors.torch.load_file(trained.vit).values())
    assert f"{count:,} values: float32" in done.stdout


def test_info_shows_what_is_not_finite_and_no_escapes(trained, tmp_path):
    state = {"head\x1b[31m.weight": torch.tensor([1.0, float("nan")]), "x": torch.ones(2)}
    torch.save(dict(state_dict=state, meta=dict(iter=3, experiment_name="a\x1b]0;b\n\x07")), tmp_path / "c.pth")
    text = describe(tmp_path / "c.pth")
    safetensors.torch.save_file(state, tmp_path / "plain.safetensors")
    assert "NOT FINITE" in describe(tmp_path / "plain.safetensors")
    assert "NOT FINITE" in text and "\x1b" not in text and "\x07" not in text and "\\x1b[31m.weight" in text


def test_info_runs_nothing(tmp_path):
    mark = tmp_path / "mark"

    class Evil:
        def __reduce__(self):
            return (type(mark).touch, (mark,))

    torch.save(dict(state_dict=dict(a=torch.ones(1)), x=Evil()), tmp_path / "evil.pth")
    with pytest.raises(ValueError, match="holding more than tensors"):
        describe(tmp_path / "evil.pth")
    config = f"__import__('pathlib').Path({str(mark)!r}).touch()"
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(cfg=config)), tmp_path / "cfg.pth")
    describe(tmp_path / "cfg.pth")
    assert not mark.exists()
