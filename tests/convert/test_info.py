"""What is said of files."""

import os
import re
import shutil
from decimal import Decimal

import numpy as np
import pytest
import safetensors.torch
import torch
from helpers.processes import run
from helpers.tools import CONVERTERS

from apla_mm.convert.info import describe
from apla_mm.delta import load_delta


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


def test_info_of_a_checkpoint(trained):
    text = describe(trained.best)
    lines = dict(line.strip().split(maxsplit=1) for line in text.splitlines()[1:])
    assert lines["trained"] == "r=8, seed=3, blocks=[0, 1], recompute=none"
    assert (lines["iteration"], lines["classes"]) == ("2", "3: cat, dog, owl")
    assert lines["kind"] == "full checkpoint of mmengine" and re.search("also holds +message_hub\n", text)
    count = sum(tensor.numel() for tensor in trained.state.values())
    assert lines["tensors"] == f"{len(trained.state)}, of {count:,} values: float32, int64"
    assert "base" not in lines and "NOT" not in text


@pytest.mark.parametrize(
    ("asked", "shown"),
    [
        (dict(r=64, seed=0, blocks="all", trainable=[], train=dict(norm=True)), "r=64, seed=0, blocks=all, train="),
        (dict(r=64, selection=dict(type="fisher", batches=8)), "r=64, selection={'type': 'fisher', 'batches': 8}"),
        (dict(r=True, seed="x", blocks="all"), "blocks=all"),
        ({(1, 2): 3, "x": Decimal(2)}, "x=<decimal.Decimal, not made>"),
        ({"a\x1b[2J": np.float64(2)}, r"a\x1b[2J=2.0"),
        ([3], ""),
    ],
)
def test_info_shows_what_the_run_was_asked_for(tmp_path, asked, shown):
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(apla=asked, iter=3)), tmp_path / "c.pth")
    found = re.findall(r"\n  trained +(.*)", describe(tmp_path / "c.pth"))
    assert bool(found) == bool(shown) and "".join(found).startswith(shown)


@pytest.mark.parametrize(("method", "shown"), [(dict(type="lora", r=8), ["type=lora, r=8"]), (3, [])])
def test_info_shows_the_method(tmp_path, method, shown):
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(method=method, iter=3)), tmp_path / "c.pth")
    assert re.findall(r"\n  method +(.*)", describe(tmp_path / "c.pth")) == shown


def test_info_of_the_others(trained, delta, tmp_path):
    (base,) = (tmp_path / "bases").iterdir()
    torch.save({"attn.proj_weight1": torch.ones(1, 2), "attn.proj_weight2": torch.ones(1, 2)}, tmp_path / "authors.pth")
    bad = tmp_path / "bad.pth"
    bad.write_bytes(b"PK not really")
    files = (trained.last, trained.vit, base, tmp_path / "authors.pth", bad, tmp_path / "none.pth", delta)
    done = run(CONVERTERS / "info.py", *files, returncode=1)
    kinds = re.findall(r"kind +(.*)", done.stdout)
    assert kinds == [
        "full checkpoint of mmengine",
        "plain safetensors",
        "base file",
        "checkpoint of the APLA authors' code: projections in two parts",
        "delta, version 1 of the format",
    ]
    assert "bad.pth" in done.stderr and "none.pth': no such file" in done.stderr
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


class Evil:
    """Calls a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def test_info_runs_nothing(tmp_path):
    mark, path = str(tmp_path / "mark"), tmp_path / "evil.pth"
    for function, arguments in ((os.mkdir, (mark,)), (type(path).touch, (tmp_path / "mark",))):
        torch.save(dict(state_dict=dict(a=torch.ones(1)), x=Evil(function, *arguments)), path)
        with pytest.raises(ValueError, match="evil.pth' cannot be read"):
            describe(path)
    # a function of a module that torch does not know as harmful is data
    torch.save(dict(state_dict=dict(a=torch.ones(1)), x=Evil(shutil.copytree, str(tmp_path), mark)), path)
    assert re.search("also holds +x$", describe(path))
    config = f"__import__('pathlib').Path({mark!r}).touch()"
    torch.save(dict(state_dict=dict(a=torch.ones(1)), meta=dict(cfg=config)), tmp_path / "cfg.pth")
    describe(tmp_path / "cfg.pth")
    assert not os.path.exists(mark)
