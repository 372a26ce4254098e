import dataclasses
import json
import math
import os
import pickle
import re
import struct
import time

import pytest
import torch
from helpers.comparisons import assert_same
from helpers.processes import run_python
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from apla_mm.delta import Delta, DeltaError, Header, extract_delta, load_delta, save_delta

PROJ = "backbone.blocks.0.attn.proj"
KEY = "apla_delta"


@pytest.fixture
def delta(make_pair):
    return extract_delta(
        make_pair()[1], r=3, seed=0, selection={"blocks": "all"}, config="a = 1\n", metrics={"mIoU": 0.5}, iteration=7
    )


@pytest.fixture
def path(delta, tmp_path):
    save_delta(delta, tmp_path / "delta.safetensors")
    return tmp_path / "delta.safetensors"


def rewrite(path, edit):
    """Write a file again after its tensors and its header were edited in place."""
    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[KEY])
    edit(tensors, header)
    # as safetensors wants them, apart; but a clone of bools has no odd bytes
    apart = {name: tensor if tensor.dtype == torch.bool else tensor.clone() for name, tensor in tensors.items()}
    save_file(apart, path, {KEY: json.dumps(header)})


def refused(path, message, **kwargs):
    with pytest.raises(DeltaError, match=message) as error:
        load_delta(path, **kwargs)
    assert str(error.value).startswith(f"delta '{path}': ")


def test_round_trip(delta, path):
    loaded = load_delta(path)
    assert loaded.header == delta.header
    for group in ("channels", "rows", "tensors"):
        assert_same(getattr(loaded, group), getattr(delta, group))
    assert loaded.source == str(path)
    first = path.read_bytes()
    save_delta(loaded, path)
    assert path.read_bytes() == first
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_any_safetensors_reader_reads_it(delta, path):
    tensors = load_file(path)
    assert torch.equal(tensors[f"rows/{PROJ}.weight"], delta.rows[f"{PROJ}.weight"])
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[KEY])
    assert header["fingerprint"] == delta.header.fingerprint
    assert (header["r"], header["config"], header["iteration"]) == (3, "a = 1\n", 7)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.int32, torch.int8, torch.uint8, torch.bool])
def test_dtypes_shapes_and_shared_memory(delta, tmp_path, dtype):
    whole = torch.arange(12).reshape(3, 4).to(dtype)
    odd = {"t": whole.T, "again": whole.T, "part": whole[:, 1], "scalar": whole[0, 0], "none": whole[:0]}
    save_delta(dataclasses.replace(delta, tensors=odd), tmp_path / "d")
    assert_same(load_delta(tmp_path / "d").tensors, odd)


def test_what_is_no_file(path, tmp_path):
    refused(tmp_path / "no", "cannot be opened: No such file")
    refused(tmp_path, "not a file, but a folder or device")
    refused("a\0b", "cannot be opened: embedded null byte")
    os.mkfifo(tmp_path / "fifo")
    start = time.monotonic()
    refused(tmp_path / "fifo", "not a file, but a folder or device")
    refused("/dev/zero", "not a file, but a folder or device")
    assert time.monotonic() - start < 5
    (tmp_path / "link").symlink_to(path)
    load_delta(tmp_path / "link")


def test_files_of_other_kinds(delta, path, tmp_path):
    class Evil:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    other = tmp_path / "other"
    torch.save(delta.tensors, other)
    refused(other, "not a safetensors file, but a checkpoint of torch, and a delta is needed: see apla-mm extract")
    other.write_bytes(pickle.dumps(Evil()))
    refused(other, "not a safetensors file")
    other.write_bytes(b"")
    refused(other, "not a safetensors file: it is empty")
    other.write_bytes(struct.pack("<Q", 2) + b"{]")
    refused(other, "not a safetensors file, or damaged")
    save_file(delta.tensors, other, {"format": "pt"})
    refused(other, "has no 'apla_delta' in its metadata: plain weights are not a delta")
    assert not (tmp_path / "ran").exists()


def test_truncated_anywhere(path):
    data = path.read_bytes()
    for size in (*range(0, len(data), len(data) // 40), len(data) - 1):
        path.write_bytes(data[:size])
        refused(path, "not a safetensors file")
    path.write_bytes(data + b"\0")
    refused(path, "not a safetensors file, or damaged")


def test_a_long_header_is_not_read(path):
    data = path.read_bytes()
    for length in (2**30, 2**63, 2**64 - 1, len(data) - 7):
        path.write_bytes(struct.pack("<Q", length) + data[8:])
        refused(path, "only the beginning of one")
    # a file that is as long as it says, but takes no room
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", 2**34))
        file.truncate(2**34 + 8)
    tail = path.with_name("tail")  # what follows the header is longer than it says
    tail.write_bytes(data)
    os.truncate(tail, 2**33)
    code = """
import resource, sys
from apla_mm.delta import DeltaError, load_delta
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        load_delta(path)
    except DeltaError as error:
        print(error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""
    long, longer, mebibytes = run_python(code, path, tail).stdout.splitlines()
    assert "its header has 17179869184 bytes, and 16777216 are allowed" in long
    assert f"it has {2**33} bytes, and should have {len(data)}" in longer
    assert int(mebibytes) < 64


@pytest.mark.parametrize(
    ("offsets", "shape", "dtype"),
    [
        ([4, 8], [1], "F32"),  # a hole
        ([0, 8], [1], "F32"),  # longer than the shape
        ([0, 2**40], [2**38], "F32"),  # beyond the end
        ([8, 4], [1], "F32"),
        ([-8, 0], [1], "F32"),
        ([0, 8], [2**63, 2**63], "F32"),
        ([0, 8], [1], "F3"),
    ],
)
def test_offsets_that_do_not_fit(path, offsets, shape, dtype):
    header = json.dumps({"tensors/x": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(8))
    refused(path, "not a safetensors file, or damaged")


def test_what_a_file_says_is_shown_printably(path):
    entry = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
    for odd in ({"tensors/x": {**entry, "dtype": "\x1b[2J"}}, {"tensors/\x1b[2J": {**entry, "data_offsets": [1, 4]}}):
        header = json.dumps(odd).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
        with pytest.raises(DeltaError, match="or damaged") as error:
            load_delta(path)
        assert "[2J" in str(error.value) and str(error.value).isprintable()


def test_tensors_that_overlap(path):
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    header = json.dumps({"tensors/x": entry, "tensors/y": {**entry, "data_offsets": [4, 12]}}).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + bytes(12))
    refused(path, "not a safetensors file, or damaged")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "header is not JSON"),
        ("{", "header is not JSON"),
        ("[" * 100_000, "header is not JSON"),
        ('{"extra":' * 100_000, "header is not JSON"),
        ("1" * 5000, "header is not JSON"),
        ("[]", "not a JSON object"),
        ("{}", r"fields 'base', 'config', 'extra', 'iteration', .* are missing or unknown"),
    ],
)
def test_metadata_that_is_no_header(delta, path, text, message):
    save_file(delta.tensors, path, {KEY: text})
    refused(path, message)


@pytest.mark.parametrize("field", ["selection", "metrics", "extra"])
def test_values_that_are_nested_deep(delta, path, field):
    def save(value):
        save_delta(dataclasses.replace(delta, header=dataclasses.replace(delta.header, **{field: value})), path)

    value = {"a": 1}
    for _ in range(64):
        value = {"a": value}
    with pytest.raises(DeltaError, match=f"'{field}' has lists and dicts in one another, more than 64 deep"):
        save(value)
    save(value["a"])
    assert getattr(load_delta(path).header, field) == value["a"]
    twice = []
    for _ in range(99):
        twice = [twice, twice]
    with pytest.raises(DeltaError, match="more than 64 deep"):
        save({"a": twice})

    tensors = load_file(path)
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()[KEY])
    text = json.dumps({**header, field: {"a": "here"}})
    for depth in (64, 800, *range(960, 1000, 3), 100_000):  # Python reads deeper than it writes
        save_file(tensors, path, {KEY: text.replace('"here"', "[" * depth + "]" * depth)})
        refused(path, "more than 64 deep" if depth < 960 else "its header")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 2, "version 2 of the format, and this apla_mm reads versions up to 1: install a newer apla_mm"),
        ("version", 0, "must be an int from 1 to 1"),
        ("version", True, "must be an int"),
        ("version", "1", r"must be an int from 1 to 1, not a str \('1'\)"),
        ("later", 1, "fields 'later' are missing or unknown"),
        ("base", [], r"header's 'base' must not be a list \(\[\]\)"),
        ("base", {"a": 1}, "'base' must map strings to strings; 'a' do not"),
        ("base", {"a": "0" * 63}, "digests of 'a' are not SHA-256"),
        ("base", {"a": "X" * 64}, "digests of 'a' are not SHA-256"),
        ("r", [], "header's 'r' must not be a list"),
        ("seed", 1.5, "header's 'seed' must not be a float"),
        ("seed", True, "header's 'seed' must not be a bool"),
        ("selection", "all", "header's 'selection' must not be a str"),
        ("config", None, "header's 'config' must not be a NoneType"),
        ("metrics", 1, "header's 'metrics' must not be an? int"),
        ("iteration", "7", "header's 'iteration' must not be a str"),
        ("versions", {"torch": 2}, "'versions' must map strings to strings; 'torch' do not"),
        ("extra", None, "header's 'extra' must not be"),
        ("fingerprint", "0" * 64, "fingerprint is not that of its base's digests"),
        ("config", "a = 2\n", "its SHA-256 is not the one it names"),
        ("sha256", None, "its SHA-256 is not the one it names"),
    ],
)
def test_header_fields(path, field, value, message):
    rewrite(path, lambda tensors, header: header.update({field: value}))
    refused(path, message)


def test_a_newer_header_may_look_otherwise(path):
    def edit(tensors, header):
        header.update(version=9, more={})
        del header["base"]

    rewrite(path, edit)
    refused(path, "it has version 9 of the format")


W, B, C = f"rows/{PROJ}.weight", f"rows/{PROJ}.bias", f"channels/{PROJ}"


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda t: t[C].__setitem__(0, -1), "must be distinct, ascending and not negative"),
        (lambda t: t[C].__setitem__(1, t[C][0]), "must be distinct, ascending and not negative"),
        (lambda t: t.update({C: t[C].flip(0)}), "must be distinct, ascending and not negative"),
        (lambda t: t.update({C: t[C].int()}), r"must be int64 of shape \(r,\), not torch.int32 of \(3,\)"),
        (lambda t: t.update({C: t[C][None]}), r"not torch.int64 of \(1, 3\)"),
        (lambda t: t.update({C: t[C][:0], W: t[W][:0], B: t[B][:0]}), r"not torch.int64 of \(0,\)"),
        (lambda t: t.update({C: t[C][:2]}), r"must have the shape \(2,"),
        (lambda t: t.update({B: t[B][:2]}), r"must have the shape \(3,\), not \(2,\)"),
        (lambda t: t.update({W: t[W][0]}), r"must have the shape \(3, in\), not \(32,\)"),
        (lambda t: t.update({W: t[W].long()}), "must be of a floating dtype, not torch.int64"),
        (lambda t: t.pop(C), "are not of the weight or bias of a projection with channels"),
        (lambda t: t.pop(W), "there are channels of '.*', but no rows '.*.weight'"),
        (lambda t: t.pop(B), "the rows '.*bias' are missing"),
        (lambda t: (t.pop(C), t.pop(W)), "are not of the weight or bias of a projection"),
        (lambda t: t.update({f"rows/{PROJ}.gamma": t[B]}), "are not of the weight or bias of a projection"),
        (lambda t: t.update({f"tensors/{PROJ}.weight": t[W]}), "are there as rows and as whole tensors"),
        (lambda t: t.update({"tensors/backbone.pos_embed": t[W]}), "whole in the delta and also belong to its base"),
        (lambda t: t.update({"tensors/x": torch.zeros(2).cfloat()}), r"x \(torch.complex64\)' have a dtype that"),
        (lambda t: t.update({"other/x": t[W]}), "'other/x' is neither of channels, rows nor tensors"),
        (lambda t: t.update({"x": t[W]}), "'x' is neither of channels, rows nor tensors"),
        (lambda t: t["tensors/head.weight"].__setitem__((1, 2), 2.0), "its SHA-256 is not the one it names"),
        (dict.clear, "it is empty"),
    ],
)
def test_tensors_that_do_not_fit_one_another(path, edit, message):
    rewrite(path, lambda tensors, header: edit(tensors))
    refused(path, message)


@pytest.mark.parametrize(
    "name",
    ["", ".", "..", "a..b", ".a", "a.", "/etc/passwd", "../x", "a/b", "a\\b", "a\0b", "a\nb", "a\x1b[2Jb", "x" * 513],
)
def test_names_that_are_none(delta, path, name):
    rewrite(path, lambda tensors, header: tensors.update({f"tensors/{name}": torch.zeros(1)}))
    refused(path, "are not names of tensors in a state dict")
    with pytest.raises(DeltaError, match="not names of tensors") as error:
        save_delta(dataclasses.replace(delta, tensors={name: torch.zeros(1)}), path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("group", ["rows", "tensors"])
def test_nan_and_infinity(delta, path, value, group):
    tensors = getattr(delta, group)
    name = next(iter(tensors))
    tensors[name].view(-1)[-1] = value
    with pytest.raises(DeltaError, match=f"was not written: there is NaN or infinity in '{re.escape(name)}'"):
        save_delta(delta, path)
    save_delta(delta, path, allow_nonfinite=True)
    refused(path, f"there is NaN or infinity in '{re.escape(name)}'")
    assert_same(getattr(load_delta(path, allow_nonfinite=True), group), tensors)


def test_bools_of_other_bytes(delta, path):
    odd = torch.tensor([0, 1, 2], dtype=torch.uint8).view(torch.bool)
    rewrite(path, lambda tensors, header: tensors.update({"tensors/x": odd}))
    refused(path, "'x' are bool, and have bytes other than 0 and 1")


def test_headers_that_cannot_be_written(delta, path):
    before = path.read_bytes()
    for extra in ({"a": torch.zeros(1)}, {"a": {1}}):
        header = dataclasses.replace(delta.header, extra=extra)
        with pytest.raises(DeltaError, match="its header cannot be written as JSON"):
            save_delta(dataclasses.replace(delta, header=header), path)
    header = dataclasses.replace(delta.header, config="x" * 2**24)
    with pytest.raises(DeltaError, match="and 16777216 are allowed; leave out 'config' or 'extra'"):
        save_delta(dataclasses.replace(delta, header=header), path)
    extra = {"tuple": (1, 2), 3: None, "text": "é\ud800\n", "nan": math.nan}
    header = dataclasses.replace(delta.header, extra=extra)
    save_delta(dataclasses.replace(delta, header=header), path)
    read = load_delta(path).header.extra
    assert math.isnan(read.pop("nan"))
    assert read == {"tuple": [1, 2], "3": None, "text": "é\ud800\n"}
    save_delta(delta, path)
    assert path.read_bytes() == before


def test_a_write_that_fails_leaves_the_file(delta, path, monkeypatch):
    before = path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        save_delta(dataclasses.replace(delta, header=Header(base=delta.header.base)), path)
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_empty_deltas_are_none(tmp_path):
    with pytest.raises(DeltaError, match="was not written: it is empty"):
        save_delta(Delta({}, {}, {}), tmp_path / "x")
    assert not list(tmp_path.iterdir())


def test_needs_torch_and_safetensors_alone():
    code = """
import sys
class Filter:
    def __init__(self, finder):
        self.finder = finder
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ("mmengine", "mmcv", "mmseg", "mmdet", "timm", "torchvision"):
            return self.finder.find_spec(name, path, target)
sys.meta_path[:] = map(Filter, sys.meta_path)
import apla_mm.delta
"""
    run_python(code)
