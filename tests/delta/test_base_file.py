"""Base files: their names, where they are looked for, what is refused."""

import os
from pathlib import Path

import pytest
import safetensors.torch
import torch
from helpers.comparisons import assert_same, clone

from apla_mm.delta import BaseMismatchError, DeltaError, extract_delta_from_states
from apla_mm.delta.base_file import base_name, find_base, load_base, merged_state, save_base

NAME = "base-0123456789abcdef.safetensors"


@pytest.fixture
def state():
    generator = torch.Generator().manual_seed(0)
    return {
        "vit.a.weight": torch.randn(6, 4, generator=generator),
        "vit.a.bias": torch.randn(6, generator=generator).to(torch.bfloat16),
        "vit.n.count": torch.tensor(7),
        "vit.empty": torch.empty(0, 3),
    }


@pytest.fixture
def delta(state):
    trained = clone(state)
    trained["vit.a.weight"][[1, 4]] += 1
    trained["head.weight"] = torch.ones(2, 2)
    return trained, extract_delta_from_states(trained, state)


def test_what_is_saved_is_loaded(state, tmp_path):
    state["vit.view"] = state["vit.a.weight"].T  # not contiguous, and of shared memory
    path = save_base(state, tmp_path / "new/bases")
    assert path.name == base_name(state) and [path] == list((tmp_path / "new/bases").iterdir())
    assert_same(load_base(path), state)


def test_the_name_says_what_is_in_it(state):
    name = base_name(state)
    assert name == base_name({key: state[key].clone() for key in reversed(state)})
    assert name == base_name({key.removeprefix("vit."): tensor for key, tensor in state.items()})
    assert name != base_name({**state, "vit.n.count": torch.tensor(8)})
    assert name != base_name({**state, "vit.n.count": torch.tensor(7, dtype=torch.int32)})
    assert name != base_name({**state, "vit.more": torch.ones(1)})


def test_a_base_is_written_once_and_again_only_if_damaged(state, tmp_path):
    path = save_base(state, tmp_path)
    os.utime(path, (1, 1))
    assert save_base(state, tmp_path) == path and path.stat().st_mtime == 1
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(DeltaError, match="by its tensors it would be called"):
        load_base(path)
    assert save_base(state, tmp_path) == path
    load_base(path)


def test_a_base_that_cannot_be_trusted_is_refused(state, tmp_path):
    path = save_base(state, tmp_path)
    renamed = tmp_path / NAME
    renamed.write_bytes(path.read_bytes())
    with pytest.raises(DeltaError, match=f"would be called '{path.name}'"):
        load_base(renamed)
    renamed.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(DeltaError, match="damaged"):
        load_base(renamed)
    renamed.write_bytes((2**30).to_bytes(8, "little") + b"{" + b" " * 100)
    with pytest.raises(DeltaError, match="damaged"):
        load_base(renamed)
    torch.save(state, renamed)
    with pytest.raises(DeltaError, match="not a safetensors file"):
        load_base(renamed)
    plain = tmp_path / "plain.safetensors"
    safetensors.torch.save_file(state, plain)
    with pytest.raises(DeltaError, match="a base file is called"):
        load_base(plain)
    with pytest.raises(DeltaError, match="no such file"):
        load_base(tmp_path / "base-ffffffffffffffff.safetensors")
    with pytest.raises(DeltaError, match="'x'"):
        save_base({"x": 3}, tmp_path)
    with pytest.raises(DeltaError, match="'c' in the state dict are no plain tensors"):
        save_base({"c": torch.zeros(2, dtype=torch.complex128)}, tmp_path)


@pytest.mark.parametrize("where", [".", "bases", "../bases", "../../bases", "elsewhere"])
def test_where_a_base_is_looked_for(tmp_path, monkeypatch, where):
    folder = tmp_path / "a/b/c"
    folder.mkdir(parents=True)
    monkeypatch.setenv("APLA_MM_BASES", f"{tmp_path / 'none'}{os.pathsep}{folder / 'elsewhere'}")
    path = folder / where / NAME
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(b"")
    monkeypatch.chdir(folder)
    for delta in (folder / "delta.safetensors", Path("delta.safetensors"), Path("../c/delta.safetensors")):
        assert find_base(NAME, delta).samefile(path)
    (folder / "delta.safetensors").write_bytes(b"")
    link = tmp_path / "far/away/best.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(folder / "delta.safetensors")
    assert find_base(NAME, link).samefile(path)


def test_a_base_further_away_is_not_found(tmp_path, monkeypatch):
    monkeypatch.setenv("APLA_MM_BASES", str(tmp_path / "named"))
    delta = tmp_path / "a/b/c/d/delta.safetensors"
    for wrong in (tmp_path / "a/bases" / NAME, tmp_path / "a/b/c" / NAME):
        wrong.parent.mkdir(parents=True)
        wrong.write_bytes(b"")
    with pytest.raises(DeltaError) as error:
        find_base(NAME, delta)
    for said in (NAME, str(delta.parent), str(tmp_path / "a/b/bases"), str(tmp_path / "named"), "APLA_MM_BASES"):
        assert said in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        f"../{NAME}", f"/tmp/{NAME}", f"x/{NAME}", f"{NAME}\n", f"{NAME}/..", "..", "", "base-.safetensors", None, 3,
        NAME.upper(), "base-0123456789abcdeg.safetensors", f"{NAME}\0",
    ],
)  # fmt: skip
def test_a_name_that_climbs_out_is_refused(tmp_path, name):
    delta = tmp_path / "a/delta.safetensors"
    delta.parent.mkdir()
    (tmp_path / NAME).write_bytes(b"")
    with pytest.raises(DeltaError, match="must be called base-<16 hexadecimal digits>"):
        find_base(name, delta)


def test_merged_is_what_was_trained(state, delta):
    trained, delta = delta
    copies = clone(state)
    more = {**state, "other_head.weight": torch.ones(3)}  # is left out
    shorter = {name.removeprefix("vit."): tensor for name, tensor in state.items()}  # a prefix is another
    longer = {f"model.backbone.{name}": tensor for name, tensor in state.items()}
    for base in (state, more, shorter, longer):
        assert_same(merged_state(delta, base), trained)
    assert_same(state, copies)  # untouched


def test_another_base_is_refused(state, delta):
    trained, delta = delta
    other = {**state, "vit.n.count": torch.tensor(8)}
    with pytest.raises(BaseMismatchError, match="'vit.n.count'"):
        merged_state(delta, other)
    assert torch.equal(merged_state(delta, other, check_base=False)["head.weight"], trained["head.weight"])
    del other["vit.n.count"]
    for check in (True, False):
        with pytest.raises(DeltaError, match="'vit.n.count' are not in the base"):
            merged_state(delta, other, check_base=check)
