"""Deltas, bases and other safetensors files where mmengine loads checkpoints."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.comparisons import assert_same, clone
from helpers.nets import TinyClassifier
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from apla_mm.delta import DeltaError, extract_delta, load_delta, save_delta
from apla_mm.delta.base_file import BASE_FILE, save_base
from apla_mm.delta.file import KEY, content_digest
from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.loading.delta_meta import extra_of

DELTA = "iter_3.delta.safetensors"
META = dict(iter=3, seed=7, dataset_meta=dict(classes=("a", "b"), palette={0: (1, 2, 3)}))


@pytest.fixture
def saved(tiny_classifier: nn.Module, tmp_path: Path) -> Path:
    """A folder with a delta and its base."""
    folder = tmp_path / "work"
    base = {n: t.clone() for n, t in tiny_classifier.state_dict().items() if not n.startswith("head.")}
    with torch.no_grad():
        for parameter in tiny_classifier.parameters():
            if parameter.requires_grad:
                parameter.add_(1)
    extra = {BASE_FILE: save_base(base, folder).name, **extra_of(META, tiny_classifier.state_dict())}
    save_delta(extract_delta(tiny_classifier, r=8, extra=extra), folder / DELTA)
    return folder


@pytest.fixture
def fresh() -> nn.Module:
    """A model with other weights."""
    torch.manual_seed(5)
    return TinyClassifier(apla=dict(r=8))


@pytest.fixture
def refuses(fresh: nn.Module) -> Callable[[Path, str], None]:
    """Checks that mmengine gets an error, and the model nothing."""

    def check(path: Path, message: str, kind: type[Exception] = DeltaError) -> None:
        before = clone(fresh.state_dict())
        with pytest.raises(kind, match=message):
            load_checkpoint(fresh, str(path))
        assert_same(fresh.state_dict(), before)

    return check


def test_delta_is_completed_with_its_base(saved: Path, tiny_classifier: nn.Module, fresh: nn.Module) -> None:
    checkpoint = load_checkpoint(fresh, str(saved / DELTA), map_location="cpu")
    assert_same(fresh.state_dict(), tiny_classifier.state_dict())
    assert checkpoint.keys() == {"meta", "state_dict"} and checkpoint["meta"] == META
    assert_same(checkpoint["state_dict"], read_checkpoint(saved / DELTA)["state_dict"])


def test_runner_loads_a_delta(
    saved: Path,
    tiny_classifier: nn.Module,
    fresh: nn.Module,
    make_runner: Callable[..., Runner],
) -> None:
    make_runner(fresh, load_from=str(saved / DELTA)).load_or_resume()
    assert_same(fresh.state_dict(), tiny_classifier.state_dict())


def test_base_is_looked_for_where_it_may_be(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_checkpoint(saved / DELTA)["state_dict"]
    (base,) = saved.glob("base-*")
    for folder in (saved / "bases", saved.parent / "bases", saved.parent / "far/away"):
        folder.mkdir(parents=True)
        base = base.rename(folder / base.name)
        if folder.name == "away":
            monkeypatch.setenv("APLA_MM_BASES", os.pathsep.join(["/nowhere", str(folder)]))
        assert_same(read_checkpoint(saved / DELTA)["state_dict"], whole)


def test_missing_base_is_an_error_that_names_it_and_the_folders(
    saved: Path, refuses: Callable[[Path, str], None]
) -> None:
    (base,) = saved.glob("base-*")
    base.unlink()
    refuses(saved / DELTA, rf"{DELTA}' needs its base, the file '{base.name}', .*'{saved}'.*APLA_MM_BASES")


def change_extra(path: Path, **extra: Any) -> None:
    delta = load_delta(path)
    delta.header.extra.update(extra)
    save_delta(delta, path)


def test_other_base_is_refused(saved: Path, refuses: Callable[[Path, str], None]) -> None:
    (base,) = saved.glob("base-*")
    state = load_file(base)
    state["idle.weight"] += 1
    save_file(state, base)
    refuses(saved / DELTA, "by its tensors it would be called 'base-")
    # one that is what its name says, and that the delta is made to name
    change_extra(saved / DELTA, base_file=save_base(state, saved).name)
    refuses(saved / DELTA, r"trained on another base.*1 differ: 'idle\.weight'")


@pytest.mark.parametrize("base", ["../work/base-{}.safetensors", "/etc/passwd", "weights.safetensors"])
def test_base_is_a_name_without_a_folder(saved: Path, base: str, refuses: Callable[[Path, str], None]) -> None:
    (path,) = saved.glob("base-*")
    change_extra(saved / DELTA, base_file=base.format(path.name[5:21]))
    refuses(saved / DELTA, "its base file must be called base-<16 hexadecimal digits>")


def test_delta_that_names_no_base_says_how_to_use_it(saved: Path, refuses: Callable[[Path, str], None]) -> None:
    delta = load_delta(saved / DELTA)
    del delta.header.extra["base_file"]
    save_delta(delta, saved / DELTA)
    refuses(saved / DELTA, "does not name its base file: merge both by")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_delta_is_an_error_that_names_it(saved: Path, share: float, refuses: Callable[..., None]) -> None:
    path = saved / DELTA
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refuses(path, rf"'{path}' .*copy it again", ValueError)


def forge(change: Callable[[dict, dict], Any], sign: bool = False) -> Callable[[dict, dict], None]:
    """Changes a delta's tensors and header, with the right digest if it is signed."""

    def edit(tensors: dict, header: dict) -> None:
        change(tensors, header)
        if sign:
            values = {key: value for key, value in header.items() if key != "sha256"}
            header["sha256"] = content_digest(values, tensors)

    return edit


PROJ = "backbone.vit.blocks.0.attn.proj"
DAMAGES: dict[str, tuple[Callable[[dict, dict], None], str]] = {
    "more": (forge(lambda t, h: t.update({"other/x": torch.ones(1)})), "'other/x' is neither of channels, rows nor"),
    "added": (forge(lambda t, h: t.update({"tensors/x": torch.ones(1)})), "SHA-256 is not the one it names"),
    "lost": (forge(lambda t, h: t.pop("tensors/head.weight")), "SHA-256 is not the one it names"),
    "value": (forge(lambda t, h: t["tensors/head.weight"].add_(1)), "SHA-256 is not the one it names"),
    "version": (forge(lambda t, h: h.update(version=9)), "install a newer apla_mm"),
    "digest": (forge(lambda t, h: h["base"].pop("idle.weight")), "its fingerprint is not that of its base's digests"),
    "unknown": (forge(lambda t, h: h.update(more=1)), "fields 'more' are missing or unknown"),
    "far channels": (
        forge(lambda t, h: t.update({f"channels/{PROJ}": torch.arange(8) + 30}), True), "has 32 channels, and 37"
    ),
    "one channel": (forge(lambda t, h: t.update({f"channels/{PROJ}": torch.zeros(8).long()}), True), "be distinct"),
    "width": (forge(lambda t, h: t.update({f"rows/{PROJ}.weight": torch.ones(8, 5)}), True), "do not fit in the"),
    "name": (forge(lambda t, h: t.update({"tensors/../x": torch.ones(1)}), True), "are not names of tensors"),
    "NaN": (forge(lambda t, h: t["tensors/head.bias"].fill_(torch.nan), True), "NaN or infinity in 'head.bias'"),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_delta_is_refused(saved: Path, damage: str, refuses: Callable[[Path, str], None]) -> None:
    change, message = DAMAGES[damage]
    tensors = load_file(saved / DELTA)
    with safe_open(saved / DELTA, "pt") as file:
        header = json.loads(file.metadata()[KEY])
    change(tensors, header)
    save_file(tensors, saved / DELTA, metadata={KEY: json.dumps(header)})
    refuses(saved / DELTA, message)


@pytest.mark.parametrize("text", ["{", "[]", "5"])
def test_delta_without_a_header_is_refused(saved: Path, text: str, refuses: Callable[[Path, str], None]) -> None:
    save_file(load_file(saved / DELTA), saved / DELTA, metadata={KEY: text})
    refuses(saved / DELTA, f"delta '{saved / DELTA}': its header is not (JSON|a JSON object)")


def test_delta_goes_where_map_location_says(saved: Path) -> None:
    for read in (read_checkpoint(saved / DELTA, "meta"), CheckpointLoader.load_checkpoint(str(saved / DELTA), "meta")):
        assert {tensor.device.type for tensor in read["state_dict"].values()} == {"meta"}
        assert read["meta"]["iter"] == 3
    read = read_checkpoint(saved / DELTA, lambda storage, location: storage)
    assert {tensor.device.type for tensor in read["state_dict"].values()} == {"cpu"}


def test_delta_brings_no_config_that_mmengine_would_run(saved: Path) -> None:
    change_extra(saved / DELTA, meta=repr({"config": "harm()", "cfg": "harm()", "seed": 3}))
    assert read_checkpoint(saved / DELTA)["meta"] == {"seed": 3}


@pytest.mark.parametrize("text", ["[1]", "harm()", "{", "(" * 9999, "{'a': 1}" + " " * 2**20, {"a": 1}])
def test_meta_that_is_no_text_of_plain_values_is_refused(
    saved: Path, refuses: Callable[[Path, str], None], text: Any
) -> None:
    change_extra(saved / DELTA, meta=text)
    refuses(saved / DELTA, "'meta' is not the text of a dict")


def test_delta_is_known_by_its_content_not_its_name(saved: Path) -> None:
    renamed = shutil.copy(saved / DELTA, saved / "best.pth")
    one, other = read_checkpoint(renamed), read_checkpoint(saved / DELTA)
    assert_same(one["state_dict"], other["state_dict"])
    assert one["meta"] == other["meta"]


def test_plain_safetensors_file_is_read(tmp_path: Path, tiny_classifier: nn.Module) -> None:
    path = tmp_path / "weights.safetensors"
    save_file(tiny_classifier.state_dict(), path)
    read = read_checkpoint(path)
    assert read.keys() == {"meta", "state_dict"} and read["meta"] == {}
    assert_same(read["state_dict"], tiny_classifier.state_dict())
    for tensor in read_checkpoint(path, torch.device("meta"))["state_dict"].values():
        assert tensor.is_meta


def test_plain_safetensors_file_is_loaded_as_far_as_it_fits(
    tmp_path: Path, tiny_classifier: nn.Module, fresh: nn.Module
) -> None:
    """As mmengine loads others."""
    state = dict(tiny_classifier.state_dict())
    save_file({**state, "head.weight": torch.ones(9, 32), "more": torch.ones(1)}, tmp_path / "w.safetensors")
    before = fresh.head.weight.clone()
    load_checkpoint(fresh, str(tmp_path / "w.safetensors"))
    assert_same(fresh.state_dict(), {**state, "head.weight": before})
    with pytest.raises(RuntimeError, match="do not match exactly"):
        load_checkpoint(fresh, str(tmp_path / "w.safetensors"), strict=True)


def test_file_below_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    save_file(nn.Linear(2, 3).state_dict(), tmp_path / "w.safetensors")
    model = nn.Linear(2, 3)
    load_checkpoint(model, "~/w.safetensors")
    assert torch.equal(model.weight, load_file(tmp_path / "w.safetensors")["weight"])


def test_base_is_no_checkpoint(saved: Path, refuses: Callable[..., None]) -> None:
    (base,) = saved.glob("base-*")
    with pytest.raises(
        ValueError, match=f"checkpoint '{base}' is a base, without what was trained: name a delta of it"
    ):
        read_checkpoint(base)
    refuses(base, f"checkpoint '{base}' is a base, without what was trained", ValueError)
