"""Files of weights as they are written, and what the tools say of those that are not."""

import pickle

import pytest
import safetensors.torch
import torch
from helpers.comparisons import assert_same

from apla_mm.convert.files import check_output, check_suffix, checkpoint_bytes, write_checkpoint
from apla_mm.text import said_by_tool


@pytest.fixture
def state():
    """Tensors that share memory, one of them not contiguous."""
    weight = torch.arange(6.0).reshape(2, 3)
    return {"a.weight": weight, "b.weight": weight, "c.weight": weight.t(), "count": torch.tensor(3)}


def test_checkpoint_is_written_whole(state, tmp_path):
    meta = dict(iter=3, classes=("a", "b"))
    for name in ("c.pth", "c.safetensors"):
        (tmp_path / name).write_text("what was there")
        write_checkpoint(tmp_path / name, state, meta)
        assert (tmp_path / name).read_bytes() == bytes(checkpoint_bytes(name[1:], state, meta))
    checkpoint = torch.load(tmp_path / "c.pth", weights_only=True)
    assert checkpoint.keys() == {"meta", "state_dict"} and checkpoint["meta"] == meta
    assert_same(checkpoint["state_dict"], state)
    assert_same(safetensors.torch.load_file(tmp_path / "c.safetensors"), state)
    assert {path.name for path in tmp_path.iterdir()} == {"c.pth", "c.safetensors"}


def test_what_cannot_be_written_leaves_nothing(state, tmp_path):
    (tmp_path / "c.pth").write_text("what was there")
    with pytest.raises((AttributeError, pickle.PicklingError)):
        write_checkpoint(tmp_path / "c.pth", state, dict(odd=lambda: None))
    (tmp_path / "folder.pth").mkdir()
    with pytest.raises(OSError):
        write_checkpoint(tmp_path / "folder.pth", state, {})
    assert {path.name for path in tmp_path.iterdir()} == {"c.pth", "folder.pth"}
    assert (tmp_path / "c.pth").read_text() == "what was there"


def test_what_is_there_is_kept_unless_forced(tmp_path):
    (tmp_path / "c.pth").write_text("mine")
    check_output(tmp_path / "new.pth", False)
    check_output(tmp_path / "c.pth", True)
    for path, force in ((tmp_path / "c.pth", False), (tmp_path, False), (tmp_path, True)):
        with pytest.raises(FileExistsError, match="is there already: .*--force"):
            check_output(path, force)


def test_what_is_read_stays_though_it_may_be_overwritten(tmp_path):
    delta, link = tmp_path / "d.safetensors", tmp_path / "link"
    delta.write_text("mine")
    link.symlink_to(delta)
    for read in ((delta,), (None, link), (tmp_path / "." / "d.safetensors",)):
        with pytest.raises(FileExistsError, match="is one of the files that are read: name another"):
            check_output(delta, True, *read)
    check_output(delta, True, None, tmp_path / "another")


def test_suffix_says_the_kind(tmp_path):
    for name in ("a.pth", "a.safetensors", "a.b.pth"):
        check_suffix(tmp_path / name)
    for name in ("a", "a.pt", "a.pth.gz"):
        with pytest.raises(ValueError, match=f"{name}' must end in .pth or .safetensors"):
            check_suffix(tmp_path / name)


def test_errors_name_options_and_hold_nothing_that_a_terminal_obeys():
    error = ValueError("use check_base=False\nor\x1b[2J allow_nonfinite=True\x07")
    assert said_by_tool(error) == "use --no-check\nor\\x1b[2J --allow-nonfinite\\x07"


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
