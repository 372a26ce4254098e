"""Calls in processes of their own, by submitit."""

import os
import time
from pathlib import Path

import pytest

from apla_mm.compare.trials.launch import Launcher, visible_gpus

pytestmark = pytest.mark.slow


def seen(folder: str, others: int) -> str | None:
    """The GPUs that a process sees, once it has met all others."""
    Path(folder, str(os.getpid())).touch()
    end = time.monotonic() + 60
    while len(os.listdir(folder)) <= others and time.monotonic() < end:
        time.sleep(0.05)
    return os.environ.get("CUDA_VISIBLE_DEVICES")


def test_calls_at_once_see_gpus_of_their_own(tmp_path: Path) -> None:
    (tmp_path / "met").mkdir()
    launcher = Launcher(tmp_path / "jobs", "local", gpus=[2, 5])
    jobs = [launcher.submit(seen, str(tmp_path / "met"), 1) for _ in range(2)]
    assert sorted(job.result() for job in jobs) == ["2", "5"]
    assert launcher.submit(seen, str(tmp_path / "met"), 0).result() == "2"


def test_without_gpus_none_is_seen_and_what_runs_can_be_ended(tmp_path: Path) -> None:
    launcher = Launcher(tmp_path / "jobs", "local")
    assert not launcher.submit(seen, str(tmp_path), 0).result()
    job = launcher.submit(time.sleep, 600)
    launcher.cancel()
    with pytest.raises(Exception, match="."):
        job.result()


def test_gpus_are_those_that_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    for given, right in (("3, 1", [3, 1]), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
        assert visible_gpus() == right
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-8932f937")
    with pytest.raises(ValueError, match="by their numbers"):
        visible_gpus()
