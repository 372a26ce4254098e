import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from mmengine.config import Config
from mmengine.runner import Runner
from mmengine.visualization import LocalVisBackend

from apla_mm.runs.vis_backends import add_vis_backends

pytestmark = pytest.mark.slow

LOGGING = ROOT / "configs/_base_/logging"


@pytest.fixture
def make(make_runner: Callable[..., Runner], tiny_classifier: Any) -> Callable[..., Runner]:
    def make(vis_backends: Any, **settings: Any) -> Runner:
        return make_runner(tiny_classifier, cfg=Config(dict(vis_backends=vis_backends)), **settings)

    return make


@pytest.mark.parametrize(
    "name", ["TensorboardVisBackend", ["TensorboardVisBackend"], dict(type="TensorboardVisBackend")]
)
def test_backend_is_added_beside_the_visualizers_own(make: Callable[..., Runner], name: Any, tmp_path: Path) -> None:
    runner = make(name)
    own = runner.visualizer.get_backend("LocalVisBackend")
    add_vis_backends(runner)
    add_vis_backends(runner)  # once is enough
    assert list(runner.visualizer._vis_backends) == ["LocalVisBackend", "TensorboardVisBackend"]
    assert isinstance(own, LocalVisBackend) and runner.visualizer.get_backend("LocalVisBackend") is own
    (events,) = tmp_path.glob("work/*/vis_data/events.out.tfevents.*")
    assert events.parent == Path(own._save_dir)
    runner.visualizer.close()


def test_settings_and_a_name_of_its_own_are_kept(make: Callable[..., Runner], tmp_path: Path) -> None:
    settings = dict(type="LocalVisBackend", name="second", save_dir=str(tmp_path / "second"))
    runner = make([settings, dict(type="LocalVisBackend")])
    add_vis_backends(runner)
    runner.visualizer.add_scalar("loss", 0.5, step=3)
    assert list(runner.visualizer._vis_backends) == ["LocalVisBackend", "second"]
    assert json.loads((tmp_path / "second/scalars.json").read_text()) == dict(loss=0.5, step=3)
    assert settings["name"] == "second"


def test_nothing_is_added_without_the_setting(make: Callable[..., Runner]) -> None:
    runner = make(None)
    add_vis_backends(runner)
    assert list(runner.visualizer._vis_backends) == ["LocalVisBackend"]


def test_wrong_settings_are_named(make: Callable[..., Runner]) -> None:
    with pytest.raises(TypeError, match="vis_backends: 3 must be a name such as 'TensorboardVisBackend'"):
        add_vis_backends(make([3]))
    with pytest.raises(KeyError, match="TensorBoard is not in the mmengine::vis_backend registry"):
        add_vis_backends(make("TensorBoard"))


def test_missing_wandb_says_what_to_install(make: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ImportError, match="WandbVisBackend: pip install -r requirements/wandb.txt"):
        add_vis_backends(make("WandbVisBackend"))


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_base_files_fit_beside_a_config_and_replace_nothing(name: str, tmp_path: Path) -> None:
    base = LOGGING.parents[1] / "seg/apla_vitb_custom.py"
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = ['{base}', '{LOGGING / name}.py']\n")
    cfg, plain = Config.fromfile(path), Config.fromfile(base)
    assert [backend.type.lower() for backend in cfg.pop("vis_backends")] == [f"{name}visbackend"]
    assert cfg.to_dict() == plain.to_dict()


@pytest.mark.skipif(importlib.util.find_spec("wandb") is None, reason="wandb is not installed: requirements/wandb.txt")
def test_wandb_offline_gets_config_and_scalars_and_no_code(
    make: Callable[..., Runner], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    for kind in ("DATA", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"WANDB_{kind}_DIR", str(tmp_path / kind))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "code.py").write_text("unmistakable = 1\n")
    runner = make(Config.fromfile(LOGGING / "wandb.py").vis_backends)
    add_vis_backends(runner)
    runner.visualizer.add_scalars({"backbone.lr": 1e-3, "iter": 1}, step=1)
    runner.visualizer.close()
    (run,) = tmp_path.glob("work/*/vis_data/wandb/offline-run-*/run-*.wandb")
    content = run.read_bytes()
    assert b"backbone.lr" in content and b"vis_backends" in content
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"unmistakable" in path.read_bytes()][1:]
