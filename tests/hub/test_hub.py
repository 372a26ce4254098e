"""A model's folder for a hub: written, read from a folder, and by hf:// from the hub's own cache."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from helpers.data_sets import write_scenes
from helpers.processes import run_python
from helpers.small_configs import segmentation_config

import apla_mm
from apla_mm.__main__ import main
from apla_mm.convert.config_text import read_config
from apla_mm.delta import load_delta
from apla_mm.hub import fetch, weights_in, write_folder
from apla_mm.options.command_line import build_runner

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a training run with deltas."""
    folder = tmp_path_factory.mktemp("run")
    cfg = segmentation_config(write_scenes(folder / "scenes"), folder / "work")
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=1, save_best="mIoU")
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type="DeltaHook")]
    build_runner(cfg).train()
    return folder


def files(run: Path) -> tuple[Path, Path]:
    (delta,) = (run / "work").glob("best_*.delta.safetensors")
    return delta, delta.with_name(delta.name.replace(".delta.safetensors", ".pth"))


def test_a_folder_holds_what_others_need_and_predicts_alike(run: Path, tmp_path: Path) -> None:
    image = run / "scenes/images/validation/scene_0.jpg"
    expected = apla_mm.load(files(run)[1], device="cpu").predict(image).label_map
    for i, file in enumerate(files(run)):
        out = tmp_path / f"model{i}"
        about = ["--license", "apache-2.0", "--base-model", "timm/vit_tiny", "--data", "three scenes"]
        main(["card", str(file), str(out), *about, "--command", "apla-mm train x.py"])
        assert np.array_equal(apla_mm.load(out, device="cpu").predict(image).label_map, expected)
        text = (out / "README.md").read_text()
        _, head, page = text.split("---\n", 2)
        settings = yaml.safe_load(head)
        assert settings["license"] == "apache-2.0" and settings["base_model"] == "timm/vit_tiny"
        assert settings["pipeline_tag"] == "image-segmentation" and settings["library_name"] == "apla_mm"
        for told in ("three scenes", "`apla-mm train x.py`", "mIoU", "EncoderDecoder", weights_in(out).name):
            assert told in page
        settings = read_config((out / "config.py").read_text())
        assert settings["model"]["type"] == "EncoderDecoder" and settings["default_scope"] == "mmseg"
    header = load_delta(weights_in(tmp_path / "model0")).header
    assert header.fingerprint in (tmp_path / "model0/README.md").read_text()
    assert len(list((tmp_path / "model0").glob("base-*.safetensors"))) == 1


def test_a_base_that_may_not_go_along_is_left_out_and_named(run: Path, tmp_path: Path) -> None:
    out = write_folder(files(run)[0], tmp_path / "model", license="other", with_base=False)
    assert not list(out.glob("base-*")) and "apla-mm make-base" in (out / "README.md").read_text()


def test_the_hubs_cache_is_read_by_name_and_revision(run: Path, tmp_path: Path) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "cache/models--user--name"
    write_folder(files(run)[0], repository / "snapshots" / commit, license="apache-2.0", title="x")
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text(commit)
    code = """
        import sys, apla_mm
        for name in ("hf://user/name", "hf://user/name@main"):
            print(apla_mm.load(name, device="cpu").predict(sys.argv[1]).label_map.sum())
        try:
            apla_mm.load("hf://user/other")
        except FileNotFoundError as error:
            print(error)
    """
    image = run / "scenes/images/validation/scene_0.jpg"
    env = dict(HF_HUB_CACHE=str(tmp_path / "cache"), HF_HUB_OFFLINE="1")
    *_, one, two, missing = run_python(code, image, env=env).stdout.splitlines()
    expected = apla_mm.load(files(run)[0], device="cpu").predict(image).label_map
    assert one == two == str(expected.sum()) and "'hf://user/other' could not be had" in missing


def test_what_is_wrong_is_named_and_nothing_left(run: Path, tmp_path: Path) -> None:
    delta, _ = files(run)
    (tmp_path / "there").mkdir()
    with pytest.raises(FileExistsError, match="is there already"):
        write_folder(delta, tmp_path / "there", license="mit")
    alone = tmp_path / "alone/a.delta.safetensors"
    alone.parent.mkdir()
    shutil.copyfile(delta, alone)
    with pytest.raises(ValueError, match="needs its base"):
        write_folder(alone, tmp_path / "new", license="mit")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone", "there"]
    for name in ("hf://", "hf://user", "hf://a/b/c", "hf://../x"):
        with pytest.raises(ValueError, match="must be hf://user/name"):
            fetch(name)
    with pytest.raises(FileNotFoundError, match="holds no .pth"):
        weights_in(tmp_path / "there")
    for one in "ab":
        shutil.copyfile(delta, tmp_path / f"there/{one}.safetensors")
    with pytest.raises(ValueError, match="several files of weights, a.safetensors, b.safetensors: name one"):
        weights_in(tmp_path / "there")


def test_a_file_without_a_config_is_refused(tmp_path: Path) -> None:
    import torch

    state: dict[str, Any] = dict(state_dict=dict(x=torch.zeros(1)), meta={})
    torch.save(state, tmp_path / "a.pth")
    with pytest.raises(ValueError, match="holds no config"):
        write_folder(tmp_path / "a.pth", tmp_path / "out", license="mit")
    assert not (tmp_path / "out").exists()
