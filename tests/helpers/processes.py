"""Processes: of a command, a snippet or a tool, of several ranks, or one to wait for and to kill."""

import contextlib
import os
import re
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import psutil
import torch
from helpers import ROOT
from helpers.prefork import run_script
from torch import distributed

#: keeps a process from GPUs
ON_CPU = dict(CUDA_VISIBLE_DEVICES="-1")


class Done(NamedTuple):
    """How a process ended, and what it wrote."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        """All that it wrote."""
        return self.stdout + self.stderr


def run(
    *command: object,
    returncode: int | None = 0,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float = 290,
) -> Done:
    """A command to its end; fails if it ends otherwise than by a return code.

    Args:
        command: A program with its arguments; a .py file is run as :mod:`~helpers.prefork` does.
        returncode: None takes any.
        env: Beside this process's variables, and a single thread.
        cwd: Folder to run in; this process's if None.
        timeout: In seconds.
    """
    program, *arguments = map(str, command)
    environment = _environment(env)
    if program.endswith(".py"):
        result = Done(*run_script(Path(program), arguments, environment, cwd, timeout))
    else:
        done = subprocess.run(
            [program, *arguments],
            env=environment,
            cwd=cwd,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout,
        )
        result = Done(done.returncode, done.stdout, done.stderr)
    assert returncode in (None, result.returncode), f"ended by {result.returncode}:\n{result.output[-9000:]}"
    return result


def _parts(command: tuple[object, ...]) -> list[str]:
    python = [sys.executable] if str(command[0]).endswith(".py") else []
    return [*python, *map(str, command)]


def _environment(env: Mapping[str, str] | None) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, **(env or {})}


def run_python(code: str, *arguments: object, **how: Any) -> Done:
    """A snippet in a fresh process, as `run` runs commands."""
    return run(sys.executable, "-c", textwrap.dedent(code), *arguments, **how)


def run_ranks(code: str, folder: Path, processes: int = 2) -> Done:
    """A snippet in a folder, in several processes that torch.distributed.run starts; it may import these helpers."""
    # as the tools end: a thread of the group that outlives the interpreter aborts its process now and then
    end = "\ntorch.distributed.barrier()\nfrom apla_mm.options.launching import end_process\nend_process()\n"
    (folder / "snippet.py").write_text(textwrap.dedent(code) + end)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}")
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return run(*launcher, folder / "snippet.py", cwd=folder, env=dict(PYTHONPATH=path))


def in_group(
    work: Callable[..., Any], folder: Path, *arguments: object, processes: int = 2, start_method: str = "forkserver"
) -> list[Any]:
    """What a function gives in each of several processes that are a group of gloo's.

    Args:
        work: Gets the rank and the arguments. By "fork" it may be any, else one of a module.
        folder: Empty, for what they give.
        arguments: Of the function.
        processes: How many.
        start_method: How processes start.
    """
    with mock.patch.dict(os.environ, ON_CPU):  # of the processes from their start: packages look for GPUs on import
        torch.multiprocessing.start_processes(
            _work, (work, folder, processes, arguments), processes, start_method=start_method
        )
    return [torch.load(folder / f"rank{rank}.pth") for rank in range(processes)]


def _work(rank: int, work: Callable[..., Any], folder: Path, processes: int, arguments: tuple[object, ...]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    # they meet by a file: a port that is free now may not be later
    meet, limit = f"file://{folder}/store", timedelta(seconds=120)
    distributed.init_process_group("gloo", init_method=meet, rank=rank, world_size=processes, timeout=limit)
    torch.save(work(rank, *arguments), folder / f"rank{rank}.pth")
    distributed.barrier()
    distributed.destroy_process_group()


@contextmanager
def started(
    *command: object, log: Path, until: str, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[str]]:
    """A process in a group of its own, once what it writes has a pattern; it is killed at the end, if it still runs.

    Args:
        command: As of `run`.
        log: File to which it writes; what is there already counts too.
        until: The pattern.
        env: As of `run`.
    """
    with log.open("a") as output:
        process = subprocess.Popen(
            _parts(command),
            env={**_environment(env), "PYTHONUNBUFFERED": "1"},
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
    try:
        wait_for(until, log, lambda: process.poll() is not None)
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[str]) -> None:
    """End a process and all that it has started, at once; torchrun starts each of its own in a group of its own."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            root = psutil.Process(process.pid)
            family = [root, *root.children(recursive=True)]
    for one in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()
    process.communicate()
    psutil.wait_procs(family)


def wait_for(pattern: str, log: Path, ended: Callable[[], object], timeout: float = 240) -> None:
    """Wait until a log has a pattern; fails if its writer has ended before."""

    def found() -> bool:
        over = ended()  # what it wrote last is read afterwards
        text = log.read_text() if log.exists() else ""
        there = re.search(pattern, text) is not None
        assert there or not over, f"{pattern} is not in\n{text[-9000:]}"
        return there

    wait_until(found, timeout, lambda: f"{pattern} in\n{log.read_text()[-9000:] if log.exists() else log}")


def wait_until(condition: Callable[[], object], timeout: float, what: Callable[[], str]) -> None:
    """Wait until a condition holds; fails after so many seconds, and says what was waited for."""
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{timeout} s were not enough for {what()}"
        time.sleep(0.01)
