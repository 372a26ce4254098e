"""One trial, in processes of its own: trained and scored by the tools, whoever was killed before."""

import fcntl
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..delta.atomic_file import write_atomic

FAILED = "failed.json"  #: in a trial's folder: why it ended in an error


def run_trial(folder: str | Path, tools: str | Path, kind: str, train_args: Sequence[str] = ()) -> None:
    """Train, and of a final trial test, what ``config.py`` in a folder says; what is done already is not done again.

    Args:
        folder: The trial's.
        tools: The folder of ``train.py`` and ``test.py``.
        kind: As of :class:`~.trial.Trial`.
        train_args: Further arguments of ``train.py``.

    Raises:
        RuntimeError: A tool was killed. Where one ended in an error, ``failed.json`` says so instead.
    """
    folder, tools = Path(folder), Path(tools)
    config = str(folder / "config.py")
    with _alone_in(folder):
        if (folder / FAILED).exists():
            return
        training = [str(tools / "train.py"), config, "--resume", *train_args]
        if not (folder / "trained.json").exists() and not _run(folder, "train", training):
            return
        if kind == "final" and not (folder / "scored.json").exists():
            checkpoint = (folder / "run" / "last_checkpoint").read_text().strip()
            work = ["--work-dir", str(folder / "test"), "--out", str(folder / predictions_of(config))]
            _run(folder, "test", [str(tools / "test.py"), config, checkpoint, *work])
        if kind == "search":
            for checkpoint_file in (folder / "run").glob("*.pth"):
                checkpoint_file.unlink()


def predictions_of(config: str) -> str:
    """What ``test.py --out`` is to write: a folder of label maps, or a detector's file."""
    return "predictions.pkl" if "default_scope = 'mmdet'" in Path(config).read_text() else "predictions"


def _run(folder: Path, name: str, command: Sequence[str]) -> bool:
    """Run a tool with its output in a log; gives whether it ended well."""
    log = folder / f"{name}.log"
    with open(log, "ab") as output:
        code = subprocess.run([sys.executable, *command], stdout=output, stderr=output, check=False).returncode
    if code < 0:
        raise RuntimeError(f"'{name}.py' was ended by signal {-code}: {log}; start the comparison again to go on")
    if code:
        last = [line for line in log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        failure = dict(tool=name, code=code, last=last[0] if last else "", log=str(log))
        write_atomic((json.dumps(failure, indent=1) + "\n").encode(), folder / FAILED)
    return code == 0


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Wait until no other process runs this trial: one that was left behind when its comparison was killed."""
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
