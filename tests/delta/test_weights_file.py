"""Files of weights: which kind they are of, and their state dicts."""

import argparse
import json
import os
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from apla_mm.delta import DeltaError, extract_delta, save_delta
from apla_mm.delta.base_file import save_base
from apla_mm.delta.weights_file import Kind, Weights, kind_of, read_weights, weights_in

STATE = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.bias": torch.ones(2, dtype=torch.bfloat16)}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a checkpoint in either of torch's formats."""

    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "c.pth"

    return write


@pytest.fixture
def delta_file(make_pair: Callable[..., tuple[nn.Module, nn.Module]], tmp_path: Path) -> Path:
    _, trained = make_pair()
    save_delta(extract_delta(trained), tmp_path / "task.delta.safetensors")
    return tmp_path / "task.delta.safetensors"


@pytest.fixture
def plain_file(tmp_path: Path) -> Path:
    save_file(STATE, tmp_path / "plain.safetensors", metadata={"format": "pt"})
    return tmp_path / "plain.safetensors"


# kinds


def test_kinds(save: Callable[[Any], Path], delta_file: Path, plain_file: Path, tmp_path: Path) -> None:
    kinds = {
        save(STATE): Kind.PICKLE,
        delta_file: Kind.DELTA,
        plain_file: Kind.SAFETENSORS,
        save_base(STATE, tmp_path): Kind.BASE,
    }
    for path, kind in kinds.items():
        assert kind_of(path) is kind_of(str(path)) is kind


@pytest.mark.parametrize("name", ["best.pth", "best", "best.safetensors", "base-0123456789abcdef.safetensors"])
def test_a_delta_is_known_by_its_content(delta_file: Path, name: str) -> None:
    assert kind_of(delta_file.rename(delta_file.with_name(name))) is Kind.DELTA


def test_a_base_is_known_by_its_name(plain_file: Path) -> None:
    renamed = plain_file.rename(plain_file.with_name("base-0123456789abcdef.safetensors"))
    assert kind_of(renamed) is Kind.BASE
    assert kind_of(renamed.rename(renamed.with_name("weights.bin"))) is Kind.SAFETENSORS


NO_SAFETENSORS = {
    "empty": b"",
    "text": b"not weights",
    "page": b"<!DOCTYPE html>\n<html></html>\n",
    "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "no end": (100).to_bytes(8, "little") + b"{",
    "too long": (2**60).to_bytes(8, "little") + b'{"a": 1}',
    "no JSON": (8).to_bytes(8, "little") + b"{\x1b[31m!!",
}


@pytest.mark.parametrize("content", NO_SAFETENSORS.values(), ids=NO_SAFETENSORS)
def test_damaged_safetensors_files_are_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "w.safetensors").write_bytes(content)
    for read in (kind_of, read_weights):
        with pytest.raises(
            ValueError, match=r"w\.safetensors' is not a safetensors file, or damaged .*copy it again"
        ) as e:
            read(tmp_path / "w.safetensors")
        assert str(e.value).isprintable()


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_safetensors_files_are_refused_by_name(
    plain_file: Path, delta_file: Path, tmp_path: Path, share: float
) -> None:
    for path in (plain_file, delta_file, save_base(STATE, tmp_path)):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ValueError, match=f"'{path}' is not a safetensors file, or damaged"):
            read_weights(path)


def test_missing_files_and_folders_are_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for read in (kind_of, read_weights):
        with pytest.raises(FileNotFoundError, match=rf"'lost\.pth': no such file \(looked in {tmp_path}\)"):
            read("lost.pth")
        with pytest.raises(ValueError, match=f"'{tmp_path}' is not a file, but a folder or device"):
            read(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="pipe' is not a file, but a folder or device"):
        kind_of(tmp_path / "pipe")


# state dicts


@pytest.mark.parametrize("key", ["state_dict", "model", "module"])
def test_state_dict_in_a_checkpoint(save: Callable[[Any], Path], assert_same: Callable[..., None], key: str) -> None:
    args = argparse.Namespace(output=Path("a"), lr=0.1)
    weights = read_weights(save({key: STATE, "epoch": 3, "args": args, "meta": dict(seed=1)}))
    assert_same(weights.state, STATE)
    assert weights.rest.keys() == {"epoch", "args", "meta"} and weights.rest["args"].lr == 0.1
    assert weights.meta == dict(seed=1)


def test_state_dict_alone(save: Callable[[Any], Path], assert_same: Callable[..., None]) -> None:
    for state in (STATE, OrderedDict(STATE), {**STATE, "model": torch.ones(1)}):
        weights = read_weights(save(state))
        assert_same(weights.state, state)
        assert weights.rest == {} and weights.meta == {}


def test_the_first_of_several_state_dicts(save: Callable[[Any], Path]) -> None:
    weights = read_weights(save(dict(model=dict(w=torch.zeros(1)), state_dict=STATE)))
    assert weights.state.keys() == STATE.keys() and weights.rest.keys() == {"model"}


def test_meta_that_is_no_dict_is_none() -> None:
    assert Weights(STATE, dict(meta="x")).meta == {} == Weights(STATE).meta


def test_safetensors_files(plain_file: Path, tmp_path: Path, assert_same: Callable[..., None]) -> None:
    for path in (plain_file, save_base(STATE, tmp_path)):
        weights = read_weights(path)
        assert_same(weights.state, STATE)
        assert weights.rest == {}


def test_a_base_that_its_name_does_not_fit_is_refused(plain_file: Path) -> None:
    renamed = plain_file.rename(plain_file.with_name("base-0123456789abcdef.safetensors"))
    with pytest.raises(DeltaError, match=f"base '{renamed}'.*by its tensors it would be called"):
        read_weights(renamed)


@pytest.mark.parametrize("name", ["task.delta.safetensors", "task.pth"])
def test_a_delta_is_refused(delta_file: Path, name: str) -> None:
    path = delta_file.rename(delta_file.with_name(name))
    with pytest.raises(ValueError, match=rf"'{path}' is a delta, and all weights are needed: .*apla-mm merge"):
        read_weights(path)


def test_a_dtype_that_torch_has_not(tmp_path: Path) -> None:
    header = json.dumps({"w": dict(dtype="F6_E2M3", shape=[4], data_offsets=[0, 3])}).encode()
    header += b" " * (-len(header) % 8)
    (tmp_path / "w.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(3))
    with pytest.raises(ValueError, match=r"w\.safetensors'"):
        read_weights(tmp_path / "w.safetensors")


class Model(nn.Module):
    pass


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "has an empty state dict"),
        (dict(state_dict={}), "has an empty state dict"),
        (dict(epoch=3), r"has no plain state dict: see 'epoch \(of type int, no tensor\)'"),
        (dict(state_dict=dict(w=[1.0])), r"see 'w \(of type list, no tensor\)'"),
        (dict(state_dict={3: torch.ones(1)}), r"see '3 \(its key is of type int\)'"),
        (dict(state_dict={None: torch.ones(1)}), r"see 'None \(its key is of type NoneType\)'"),
        (dict(w=torch.empty(2, device="meta")), r"see 'w \(without values\)'"),
        (dict(w=torch.eye(2).to_sparse()), r"see 'w \(sparse or quantized\)'"),
        (dict(w=torch.ones(2, dtype=torch.complex128)), r"see 'w \(torch.complex128, which safetensors files"),
        (dict(state_dict=dict(w=Path)), r"see 'w \(of type type, no tensor\)'"),
        (dict(state_dict=dict(w=slice(1))), r"see 'w \(of type slice, no tensor\)'"),
        ([torch.ones(1)], "holds a list, not a checkpoint"),
        (torch.ones(1), "holds a Tensor, not a checkpoint"),
        (3, "holds a int, not a checkpoint"),
    ],
)
def test_what_has_no_state_dict_is_refused_by_name(save: Callable[[Any], Path], content: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"'.*/c\.pth' .*{message}"):
        read_weights(save(content))


@pytest.mark.filterwarnings("ignore")  # quantized tensors are deprecated
def test_quantized_tensors_are_refused(save: Callable[[Any], Path]) -> None:
    path = save(dict(w=torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)))
    with pytest.raises(ValueError, match=r"c\.pth' .*see 'w \(sparse or quantized\)'"):
        read_weights(path)


def test_types_that_were_not_made_are_called_by_their_names(tmp_path: Path) -> None:
    path = tmp_path / "c.pth"
    for content, message in (
        (Model(), f"holds a {__name__}.Model, not a checkpoint"),
        (
            dict(state_dict=Model(), epoch=3),
            f"see 'epoch .of type int, no tensor.', 'state_dict .of type {__name__}.Mo",
        ),
        (dict(w=argparse.ArgumentTypeError()), "see 'w .of type argparse.ArgumentTypeError, no tensor.'"),
    ):
        torch.save(content, path)
        with pytest.raises(ValueError, match=rf"'{path}' .*{message}"):
            read_weights(path)


def test_complex_weights_that_safetensors_can_hold(save: Callable[[Any], Path]) -> None:
    assert read_weights(save(dict(w=torch.ones(2, dtype=torch.complex64)))).state["w"].is_complex()


@pytest.mark.parametrize("content", [*NO_SAFETENSORS.values(), bytes(range(256))], ids=[*NO_SAFETENSORS, "bytes"])
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"'.*/c\.pth' (cannot be read|is not a safetensors file, or damaged)"):
        read_weights(tmp_path / "c.pth")


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_checkpoints_are_refused_by_name(save: Callable[[Any], Path], share: float) -> None:
    path = save(dict(state_dict=nn.Linear(50, 50).state_dict()))
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"'.*/c\.pth' cannot be read"):
        read_weights(path)


def test_weights_in_what_was_read_already() -> None:
    weights = weights_in(dict(model=STATE, epoch=3), Path("c.pth"))
    assert weights.state is STATE and weights.rest == dict(epoch=3)
    with pytest.raises(ValueError, match="'c.pth' has an empty state dict"):
        weights_in(dict(model={}), Path("c.pth"))
