"""Pretrained weights out of whatever file they lie in."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import apla_mm
from apla_mm.delta import DeltaError, extract_delta, save_delta
from apla_mm.delta.base_file import save_base
from apla_mm.models import APLAViT
from apla_mm.models.backbones import pretrained as reader

STATE = {"blocks.0.weight": torch.arange(6.0).reshape(2, 3), "cls_token": torch.ones(1)}


class Model(nn.Module):
    """One of these names."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(3, 2, bias=False)])
        self.cls_token = nn.Parameter(torch.zeros(1))


def read_pretrained(path: str | Path) -> dict[str, Tensor]:
    return reader.read_pretrained(reader.Source.of(path), Model(), Model)


def prefixed(prefix: str) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in STATE.items()}


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a checkpoint in either of torch's formats."""

    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "c.pth"

    return write


def make(pretrained: str | Path | None = None, **kwargs: Any) -> APLAViT:
    size = dict(img_size=32, model_kwargs=dict(embed_dim=32, depth=2, num_heads=2))
    return APLAViT("vit_tiny_patch16_224", pretrained=pretrained or False, **size, **kwargs)


# what is taken off


WRAPPED: dict[str, Any] = {
    "plain": STATE,
    "state_dict": dict(state_dict=STATE, epoch=3),
    "model": dict(model=STATE, args=argparse.Namespace(path=Path("a"))),
    "teacher": dict(teacher=STATE, student=dict(w=torch.zeros(1))),
    "EMA": dict(state_dict_ema=STATE, state_dict=dict(w=torch.zeros(1))),
    "EMA of a model": dict(model_ema=STATE, model=dict(w=torch.zeros(1))),
    "two": dict(state_dict=dict(model=STATE)),
    "module": prefixed("module."),
    "backbone": {**prefixed("backbone."), "head.weight": torch.ones(1)},
    "module and backbone": dict(model={**prefixed("module.backbone."), "module.head.weight": torch.ones(1)}),
    "this package's": dict(state_dict={**prefixed("backbone.vit."), "decode_head.weight": torch.ones(1)}),
    "more than tensors": {**STATE, "epoch": 3, "name": "vit", "path": Path("a")},
}


@pytest.mark.parametrize("name", WRAPPED)
def test_what_checkpoints_are_wrapped_in(
    save: Callable[[Any], Path], assert_same: Callable[..., None], name: str
) -> None:
    path = save(WRAPPED[name])
    assert_same(read_pretrained(path), STATE)
    assert_same(read_pretrained(str(path)), STATE)


@pytest.mark.parametrize("prefix", ["", "module.", "backbone.", "backbone.vit."])
def test_safetensors_files(tmp_path: Path, assert_same: Callable[..., None], prefix: str) -> None:
    save_file(prefixed(prefix), tmp_path / "w.safetensors")
    for path in (tmp_path / "w.safetensors", save_base(prefixed(prefix), tmp_path)):
        assert_same(read_pretrained(path), STATE)


def test_safetensors_files_by_their_content(tmp_path: Path, assert_same: Callable[..., None]) -> None:
    save_file(STATE, tmp_path / "w.bin")
    assert_same(read_pretrained(tmp_path / "w.bin"), STATE)


# what is refused


@pytest.fixture
def make_delta(tmp_path: Path) -> Callable[..., Path]:
    """Writes the delta of a backbone that trained."""

    def write(name: str, prefix: str = "", **adapt: Any) -> Path:
        model = nn.ModuleDict({prefix: make()}) if prefix else make()
        apla_mm.adapt(model, **adapt)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(1)
        delta = extract_delta(model)
        assert bool(delta.channels) == (adapt["r"] != "full")
        save_delta(delta, tmp_path / name)
        return tmp_path / name

    return write


@pytest.mark.parametrize("r", [8, "full"])
@pytest.mark.parametrize("prefix", ["", "backbone"])
@pytest.mark.parametrize("name", ["task.delta.safetensors", "task.pth", "base-0123456789abcdef.safetensors"])
def test_a_delta_is_refused(
    make_delta: Callable[..., Path], assert_same: Callable[..., None], r: Any, prefix: str, name: str
) -> None:
    """Also one that trained whole projections, and has no channels."""
    path = make_delta(name, prefix, r=r)
    backbone = make(path, apla=dict(r=r))
    before = {key: tensor.clone() for key, tensor in backbone.state_dict().items()}
    with pytest.raises(
        ValueError, match=rf"pretrained: '{path}' is a delta, of which load_from takes all; .*apla-mm merge"
    ):
        backbone.init_weights()
    assert_same(backbone.state_dict(), before)
    with pytest.raises(RuntimeError, match="no weights yet"):
        backbone(torch.randn(1, 3, 32, 32))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"pretrained: '{tmp_path}/none\.pth': no such file"):
        read_pretrained(tmp_path / "none.pth")
    with pytest.raises(ValueError, match=f"pretrained: '{tmp_path}' is not a file"):
        read_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not weights",
        b"<!DOCTYPE html>\n<html></html>\n",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        bytes(range(256)),
    ],
)
def test_what_is_no_file_of_weights(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(
        ValueError, match=rf"pretrained: '{tmp_path}/{name}' (cannot be read|is not a safetensors file)"
    ):
        read_pretrained(tmp_path / name)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_files(save: Callable[[Any], Path], tmp_path: Path, share: float) -> None:
    weights = dict(w=torch.ones(2500))
    save_file(weights, tmp_path / "w.safetensors")
    for path in (save(weights), tmp_path / "w.safetensors", save_base(weights, tmp_path)):
        path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
        with pytest.raises(ValueError, match=f"pretrained: '{path}'"):
            read_pretrained(path)


def test_a_base_that_its_name_does_not_fit(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "base-0123456789abcdef.safetensors")
    with pytest.raises(DeltaError, match="pretrained: .*by its tensors it would be called"):
        read_pretrained(tmp_path / "base-0123456789abcdef.safetensors")


@pytest.mark.parametrize("content", [{}, dict(epoch=3), dict(state_dict={}), [torch.ones(1)], 3, Path("a")], ids=str)
def test_what_holds_no_state_dict(save: Callable[[Any], Path], content: Any) -> None:
    with pytest.raises(ValueError, match=r"pretrained: '.*c\.pth' holds no state dict"):
        read_pretrained(save(content))


class Evil:
    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("within", [lambda evil: evil, lambda evil: {**STATE, "more": [evil]}])
def test_nothing_in_a_file_is_run(
    save: Callable[[Any], Path], tmp_path: Path, assert_same: Callable[..., None], within: Callable[[Any], Any]
) -> None:
    marker = tmp_path / "marker"
    for evil in (Evil(open, str(marker), "w"), Evil(exec, f"open({str(marker)!r}, 'w')")):
        path = save(dict(state_dict=within(evil)))
        if within(evil) is evil:
            with pytest.raises(ValueError, match=r"c\.pth' holds no state dict"):
                read_pretrained(path)
        else:
            assert_same(read_pretrained(path), STATE)
    with pytest.raises(ValueError, match=r"c\.pth' cannot be read: it would run '(posix|nt)\.system'"):
        read_pretrained(save(dict(state_dict=within(Evil(os.system, f"echo > {marker}")))))
    assert not marker.exists()
