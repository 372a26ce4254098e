"""One trial, in processes of its own: trained and scored by the commands, whoever was killed before."""

import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ...delta.atomic_file import write_atomic

#: in a trial's folder: what its training was, what its test gave, and why it ended in an error
TRAINED, SCORED, FAILED = "trained.json", "scored.json", "failed.json"


def run_trial(
    folder: str | Path,
    train_args: Sequence[str] = (),
    test_args: Sequence[str] | None = None,
    commands: str = "apla_mm.commands",
) -> None:
    """Train, and test if asked for, what ``config.py`` in a folder says; what is done already is not done again.

    Args:
        folder: The trial's.
        train_args: Further arguments of ``apla-mm train``.
        test_args: Further arguments of ``apla-mm test``; None for a trial that is not tested and needs no checkpoint
            then.
        commands: The package whose modules ``train`` and ``test`` are run.

    Raises:
        RuntimeError: A command was ended by a signal. Where one ended in an error, ``failed.json`` says so instead.
    """
    folder = Path(folder)
    config, run = str(folder / "config.py"), folder / "run"
    with _alone_in(folder) as lock:
        if (folder / FAILED).exists():
            return
        training = [config, "--resume", *train_args]
        if not (folder / TRAINED).exists() and not _run(folder, f"{commands}.train", training, lock):
            return
        if test_args is not None and not (folder / SCORED).exists():
            checkpoint = (run / "last_checkpoint").read_text().strip()
            test = [config, checkpoint, "--work-dir", str(folder / "test"), *test_args]
            _run(folder, f"{commands}.test", test, lock)
        if test_args is None:
            for file in run.glob("*.pth"):
                file.unlink()


def _run(folder: Path, module: str, arguments: Sequence[str], lock: int) -> bool:
    """Run a command with its output in a log; gives whether it ended well. It holds the lock too, if this is killed."""
    name = module.rpartition(".")[2]
    log = folder / f"{name}.log"
    with open(log, "ab") as output:
        code = subprocess.run(
            [sys.executable, "-m", module, *arguments], stdout=output, stderr=output, check=False, pass_fds=[lock]
        ).returncode
    if code < 0 or code > 128:  # by Python, or as shells and StopSignalHook say it
        raise RuntimeError(f"{name} was ended by signal {abs(code) % 128}: {log}; the same command goes on")
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        failure = dict(tool=name, code=code, last=last[0] if last else "", log=str(log))
        write_atomic((json.dumps(failure, indent=1) + "\n").encode(), folder / FAILED)
    return code == 0


@contextmanager
def _alone_in(folder: Path) -> Iterator[int]:
    """Wait until no other process runs this trial: one that was left behind when its comparison was killed."""
    lock = os.open(folder / "lock", os.O_CREAT | os.O_RDWR, 0o644)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield lock
    finally:
        os.close(lock)
