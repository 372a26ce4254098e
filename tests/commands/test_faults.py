"""What happens to training when something else breaks, with real processes."""

import os
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.processes import ON_CPU, run
from helpers.small_run import CONFIG, DIST_TRAIN, ENDLESS, TRAIN, run_small, started_small

from apla_mm.loading.checkpoint_reader import read_checkpoint

pytestmark = pytest.mark.slow


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def outcome(process: subprocess.Popen[str], log: Path) -> str:
    """What a process has written; it must end in time, and not well."""
    begin = time.monotonic()
    assert process.wait(60) != 0
    print(f"ended with {process.returncode} after {time.monotonic() - begin:.1f} s")
    return log.read_text()


def test_worker_that_dies_ends_training_with_its_name(data: str, tmp_path: Path) -> None:
    options = [data, *ENDLESS, "train_dataloader.num_workers=1"]
    log = tmp_path / "log.txt"
    with started_small(TRAIN, CONFIG, "--work-dir", tmp_path, options=options, log=log) as process:
        (worker,) = children(process.pid)
        os.kill(worker, signal.SIGKILL)
        last = outcome(process, log).strip().splitlines()[-1]
    assert re.match(
        r"RuntimeError: a worker of a data loader died: .*; if the system ended it for want of memory", last
    )


def test_process_that_dies_ends_the_others_and_is_named(data: str, tmp_path: Path) -> None:
    options, log = [data, *ENDLESS], tmp_path / "log.txt"
    with started_small(DIST_TRAIN, CONFIG, 2, "--work-dir", tmp_path, options=options, log=log) as process:
        (launcher,) = [process.pid] if len(children(process.pid)) == 2 else children(process.pid)
        ranks = children(launcher)
        assert len(ranks) == 2
        os.kill(ranks[1], signal.SIGKILL)
        output = outcome(process, log)
    assert re.search(rf"rank +: 1 .*\n +exitcode +: -9 \(pid: {ranks[1]}\)", output), output[-5000:]
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder on a file system with room for two checkpoints."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = run("mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", folder, returncode=None)
    if mounted.returncode:
        pytest.skip(f"no small file system without the right to mount one: {mounted.stderr.strip()}")
    yield folder
    run("umount", folder)


def test_disk_that_is_full_is_said_and_the_last_checkpoint_stays(data: str, small_disk: Path) -> None:
    work = small_disk / "work"
    options = [data, "train_cfg.max_iters=100", "default_hooks.checkpoint.interval=1"]
    options += ["default_hooks.checkpoint.max_keep_ckpts=-1", "train_cfg.val_interval=1000"]
    text = run_small(TRAIN, CONFIG, "--work-dir", work, options=options, returncode=1, env=ON_CPU, timeout=600)
    saved = sorted(work.glob("*.pth"), key=lambda path: path.stat().st_mtime)
    assert saved and all(read_checkpoint(path)["meta"]["iter"] for path in saved)
    assert not list(work.glob(".*.part"))
    assert re.search(r"could not be saved: .*No space left on device: not written; it needs [\d.]+ MiB, and", text)
    assert f"the last checkpoint is '{saved[-1]}', and --resume goes on from it" in text
    assert (work / "last_checkpoint").read_text() == str(saved[-1])
