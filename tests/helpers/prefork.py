"""Scripts in processes that begin with OpenMMLab imported, which takes longer than most of what tests run.

A server imports it once and forks a process for each script, with its own variables, arguments, folder and streams.
What a fresh import does is for :func:`helpers.processes.run_python`.
"""

import multiprocessing
import os
import random
import runpy
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

PRELOADED = ["mmseg.apis", "mmdet.apis", "timm", "apla_mm.options.command_line"]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(PRELOADED)


def run_script(
    script: Path, arguments: Sequence[str], env: Mapping[str, str], cwd: Path | None, timeout: float
) -> tuple[int, str, str]:
    """A Python script to its end.

    Args:
        script: The file.
        arguments: Its arguments.
        env: All of its variables.
        cwd: Folder to run in; this process's if None.
        timeout: In seconds.

    Returns:
        Its return code, and what it wrote to stdout and stderr.

    Raises:
        TimeoutError: It took longer, and was killed.
    """
    with TemporaryDirectory() as folder:
        streams = [Path(folder, name) for name in ("stdout", "stderr")]
        process = _context.Process(target=_run, args=(script, list(arguments), dict(env), cwd or Path.cwd(), streams))
        process.start()
        process.join(timeout)
        if process.exitcode is None:
            process.kill()
            process.join()
            raise TimeoutError(f"{script} {arguments}: longer than {timeout} s")
        stdout, stderr = (path.read_text(errors="replace") if path.exists() else "" for path in streams)
        return process.exitcode, stdout, stderr


def _run(script: Path, arguments: list[str], env: dict[str, str], cwd: Path, streams: list[Path]) -> None:
    for number, path in enumerate(streams, 1):
        with path.open("wb") as file:
            os.dup2(file.fileno(), number)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [str(script), *arguments]
    sys.path[:0] = [str(script.parent), *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    for seed in (random.seed, np.random.seed, torch.seed):  # each would draw what the others do
        seed()
    runpy.run_path(str(script), run_name="__main__")
