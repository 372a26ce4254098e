"""Configs by name, on command lines and in the _base_ of other configs."""

import argparse
from pathlib import Path

import mmseg
import pytest
from helpers import ROOT
from helpers.tools import call_tool
from helpers.tools import read_config as read_with_options
from mmengine.config import Config
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.hub import get_config

from apla_mm.config_files import config_argument, find_config, read_config, read_model_config, shipped_configs

NAME = "apla_mm::seg/apla_vitb_ade.py"
FILE = ROOT / "configs/seg/apla_vitb_ade.py"


def test_names_are_those_of_the_files() -> None:
    names = shipped_configs()
    folder = ROOT / "configs"
    files = {path.relative_to(folder) for path in folder.rglob("*.py") if "_base_" not in str(path.relative_to(folder))}
    assert set(names) == {f"apla_mm::{file}" for file in files} and names == sorted(names)
    for name in names:
        assert find_config(name).samefile(folder / name.partition("::")[2])


def test_paths_and_names_of_other_packages_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("")
    monkeypatch.chdir(tmp_path)
    assert find_config("mine.py").samefile(tmp_path / "mine.py")
    theirs = "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512.py"
    assert find_config(f"mmseg::{theirs}") == Path(mmseg.__file__).parent / ".mim/configs" / theirs


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("apla_mm::seg/apla_vitb_ad.py", "near to it are apla_mm::seg/apla_vitb_ade.py"),
        ("apla_mm::apla_vitb_ade", "near to it are apla_mm::seg/apla_vitb_ade.py"),
        ("configs/sge/apla_vitb_coco.py", "near to it are apla_mm::det/apla_vitb_coco.py"),
        ("dino_swin-t.py", "near to it are apla_mm::det/dino_swin-t_apla_8xb2-90k_coco-1333x800.py"),
        ("xyz.py", "there is no config 'xyz.py'; apla-mm configs lists those of apla_mm"),
        ("mmseg::segformer/segformer_mit_b0.py", "near to it are mmseg::segformer/segformer_mit-b"),
        ("nowhere::a.py", "names a config of the package nowhere, which is not installed"),
        ("numpy::a.py", "of the package numpy, which has no folder"),
    ],
)
def test_a_name_that_does_not_exist_is_refused_with_the_nearest(
    name: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=message):
        find_config(name)
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        config_argument(name)


def test_commands_refuse_it_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        call_tool(ROOT / "tools/train.py", "apla_mm::seg/apla_vitb_ad.py")
    assert ended.value.code == 2
    assert "argument config: there is no config 'apla_mm::seg/apla_vitb_ad.py'; near to it" in capsys.readouterr().err


def test_a_base_by_name_gives_what_the_base_by_path_gives(tmp_path: Path) -> None:
    """Heads taken over from the base, lists of bases and parts of them among it, which mmengine marks by a scope."""
    text = "_base_ = [{!r}]\ntrain_cfg = dict(max_iters=7)\nmodel = dict(neck=None, more=_base_.model.decode_head)\n"
    found = []
    for name, base in dict(named=NAME, path=str(FILE)).items():
        (tmp_path / f"{name}.py").write_text(text.format(base))
        found.append(read_config(tmp_path / f"{name}.py").to_dict())
    assert found[0] == found[1] and found[0]["train_cfg"]["max_iters"] == 7
    assert "_scope_" not in str(found[0])
    assert found[0]["model"]["more"]["type"] == "SETRUPHead"


def test_scopes_of_other_packages_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODULE2PACKAGE, "mmseg", "mmseg")  # mmengine asks for mmsegmentation; ours may be onedl's
    (tmp_path / "c.py").write_text("_base_ = 'mmseg::_base_/models/segformer_mit-b0.py'\n")
    assert read_config(tmp_path / "c.py").model._scope_ == "mmseg"


def test_options_reach_every_place_of_a_config_whose_base_is_named(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("_base_ = 'apla_mm::seg/apla_vitb_custom.py'\n")
    options = ("data_root=/data/pets", "classes=cat,dog", "crop_size=64")
    named = read_with_options(tmp_path / "c.py", *options)
    path = read_with_options(ROOT / "configs/seg/apla_vitb_custom.py", *options)
    assert {**named.to_dict(), "work_dir": ""} == {**path.to_dict(), "work_dir": ""}


def test_a_base_that_does_not_exist_is_refused_with_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "c.py").write_text("_base_ = 'apla_mm::seg/apla_vitb_ad.py'\n")
    message = (
        r"c\.py': there is no config 'apla_mm::seg/apla_vitb_ad\.py' to base it on; near to it are apla_mm::seg/ap"
    )
    with pytest.raises(FileNotFoundError, match=message):
        read_config(tmp_path / "c.py")
    (tmp_path / "c.py").write_text("_base_ = 'other.py'\n")
    with pytest.raises(FileNotFoundError, match=r"other\.py"):
        read_config(tmp_path / "c.py")


def test_mmengine_knows_the_name_too() -> None:
    assert get_config(NAME).to_dict() == Config.fromfile(FILE).to_dict()
    assert MODULE2PACKAGE["mmseg"] == "mmsegmentation"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("model = dict(\n", r"line 1, 'model = dict\(': '\(' was never closed"),
        ("a = 1\nb = a / 0\n", r"line 2 of 'own.py': ZeroDivisionError: division by zero"),
        ("import not_there\n", "ModuleNotFoundError: .*not_there"),
        ("from not_there import one\n", "ModuleNotFoundError: .*not_there"),
        ("custom_imports = dict(imports=['not_there'], allow_failed_imports=False)\n", "ImportError: .*not_there"),
        (b"\xff\xfe", "UnicodeDecodeError"),
    ],
)
def test_what_cannot_be_read_is_told_with_file_and_line(text: str | bytes, told: str, tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=rf"^config '{path}' cannot be read: .*{told}"):
        read_config(path)


def test_a_base_by_path_that_does_not_exist_is_named(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("_base_ = ['./other.py']\n")
    with pytest.raises(FileNotFoundError, match=rf"^config '{path}': there is no file '{tmp_path}/(\./)?other.py'"):
        read_config(path)


def test_a_config_without_a_model_is_refused_where_one_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "own.py"
    path.write_text("model = 3\n")
    with pytest.raises(ValueError, match=rf"^config '{path}' has no model=dict"):
        read_model_config(path)
    with pytest.raises(ValueError, match=rf"^config '{path}' has no model=dict"):
        read_with_options(path)
