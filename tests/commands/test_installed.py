"""The wheel in an environment of its own, away from this repository: commands, configs, a training and its test."""

import re
import shutil
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.data_sets import write_photos
from helpers.processes import ON_CPU, Done, run
from helpers.small_run import OPTIONS, miou

from apla_mm.config_files import shipped_configs

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has the wheel, and whatever else the tests' own environment has."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    for name in ("apla_mm", "configs", "tools"):
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = (sys.executable, "-m", "pip", "--no-input", "-q")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", folder, source)
    shutil.rmtree(source)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    python = folder / "venv/bin/python"
    run(*pip, "--python", python, "install", "--no-deps", "--no-index", wheel)
    (site,) = (folder / "venv/lib").glob("python*/site-packages")
    others = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (site / "others.pth").write_text("\n".join(others))  # not their own .pth files, of which one may name a clone
    return folder / "venv"


@pytest.fixture
def call(environment: Path, tmp_path: Path) -> Callable[..., Done]:
    """Runs a program of the environment in an empty folder."""

    return lambda program, *arguments: run(
        environment / "bin" / program, *arguments, cwd=tmp_path, env=dict(ON_CPU, PYTHONPATH="")
    )


def test_it_trains_and_tests_a_config_of_its_own(call: Callable[..., Done], environment: Path, tmp_path: Path) -> None:
    assert "train a segmentor, detector or classifier" in call("apla-mm").stdout
    where = call("python", "-c", "import apla_mm; print(apla_mm.__file__)").stdout
    assert Path(where.strip()).is_relative_to(environment)
    configs = call("apla-mm", "configs").stdout.split()
    assert configs == [name for name in shipped_configs() if "::demo/" not in name]

    data = f"data_root={write_photos(tmp_path / 'photos')}"
    (tmp_path / "mine.py").write_text("_base_ = 'apla_mm::seg/apla_vitb_custom.py'\n")
    options = ("--cfg-options", *OPTIONS, "train_cfg.max_iters=2", "train_cfg.val_interval=2", data)
    trained = call("apla-mm", "train", "mine.py", *options)
    assert "first step: " in trained.output and (tmp_path / "work_dirs/mine/iter_2.pth").exists()
    checkpoint = tmp_path / "work_dirs/mine/iter_2.pth"
    tested = call("apla-mm", "test", "apla_mm::seg/apla_vitb_custom.py", checkpoint, *options)
    assert miou(tested.output, each=4) == miou(trained.output, each=4)
    assert re.search(r"iteration +2\n", call("apla-mm", "info", checkpoint).stdout)


def test_it_has_the_scripts_for_several_processes(environment: Path) -> None:
    (tools,) = environment.glob("lib/python*/site-packages/apla_mm/.mim/tools")
    started = run(tools / "dist_train.sh", "mine.py", 2, env=dict(PYTHON="echo")).stdout
    assert started.endswith(f"--nproc-per-node=2 {tools}/train.py mine.py --launcher pytorch\n")
    assert (tools / "train.py").is_file() and not (tools / "setup_env.sh").exists()
