"""Trials whose commands are modules of a few lines, in real processes: what is kept, and what is done again."""

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.processes import wait_until

from apla_mm.compare.trials.run_trial import run_trial

TRAIN = """
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1]).parent
with open(folder / "calls", "a") as calls:
    calls.write(" ".join(["train", *sys.argv[2:]]) + chr(10))
(folder / "run").mkdir(exist_ok=True)
(folder / "run/iter_3.pth").touch()
(folder / "run/last_checkpoint").write_text("iter_3.pth")
exec((folder / "do").read_text() if (folder / "do").exists() else "")
(folder / "trained.json").write_text("{}")
"""
TEST = """
import pathlib, sys
folder = pathlib.Path(sys.argv[1]).parent
with open(folder / "calls", "a") as calls:
    calls.write(" ".join(["test", *sys.argv[2:]]) + chr(10))
(folder / "scored.json").write_text("{}")
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "short").mkdir()
    (tmp_path / "short/train.py").write_text(TRAIN)
    (tmp_path / "short/test.py").write_text(TEST)
    path = filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path))
    (tmp_path / "trial").mkdir()
    return tmp_path / "trial"


def calls(folder: Path) -> list[str]:
    return (folder / "calls").read_text().splitlines()


def run(folder: Path, test_args: list[str] | None = None) -> None:
    run_trial(folder, ["--amp"], test_args, commands="short")


def test_a_search_trains_and_leaves_no_checkpoint(folder: Path) -> None:
    run(folder)
    run(folder)
    assert calls(folder) == ["train --resume --amp"] and not list(folder.rglob("*.pth"))


def test_a_final_trial_is_tested_once_with_its_last_checkpoint(folder: Path) -> None:
    run(folder, ["--out", "here"])
    run(folder, ["--out", "here"])
    assert calls(folder) == ["train --resume --amp", f"test iter_3.pth --work-dir {folder / 'test'} --out here"]
    assert (folder / "run/iter_3.pth").exists()


def test_an_error_is_kept_with_its_last_line_and_not_run_again(folder: Path) -> None:
    (folder / "do").write_text("raise ValueError('the loss is nan')")
    run(folder, [])
    run(folder, [])
    failure = json.loads((folder / "failed.json").read_text())
    assert failure["tool"] == "train" and failure["last"] == "ValueError: the loss is nan"
    assert len(calls(folder)) == 1


@pytest.mark.parametrize(
    ("end", "number"),
    [("os.kill(os.getpid(), 9)", 9), ("sys.exit(143)", 15), ("sys.exit(130)", 2), ("sys.exit(138)", 10)],
)
def test_what_a_signal_ended_is_no_failure_and_goes_on(folder: Path, end: str, number: int) -> None:
    (folder / "do").write_text(end)
    with pytest.raises(RuntimeError, match=f"train was ended by signal {number}: "):
        run(folder, [])
    assert not (folder / "failed.json").exists() and not (folder / "scored.json").exists()
    (folder / "do").unlink()
    run(folder, [])
    assert [call.split()[0] for call in calls(folder)] == ["train", "train", "test"]


def test_training_that_was_left_behind_is_waited_for(folder: Path) -> None:
    (folder / "do").write_text("while not (folder / 'go').exists(): time.sleep(0.05)")
    code = (
        "import sys; from apla_mm.compare.trials.run_trial import run_trial; run_trial(sys.argv[1], commands='short')"
    )
    trial = subprocess.Popen([sys.executable, "-c", code, folder])
    wait_until((folder / "calls").exists, 60, lambda: f"{trial.poll()}")
    trial.kill()
    trial.wait()
    with open(folder / "lock") as lock, pytest.raises(BlockingIOError):
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # the training holds it
    (folder / "go").touch()
    run(folder)
    assert len(calls(folder)) == 1 and (folder / "trained.json").exists()
