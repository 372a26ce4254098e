"""Training by the tools, in real processes."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from helpers.small_run import OPTIONS, ROOT

DIST_TRAIN, DIST_TEST = ROOT / "tools/dist_train.sh", ROOT / "tools/dist_test.sh"
#: nothing is saved but by a signal
ENDLESS = ["train_cfg.max_iters=100000", "train_cfg.val_interval=100000", "default_hooks.checkpoint.interval=100000"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "-1"}


def command(*parts: object, options: list[str]) -> list[str]:
    python = [sys.executable] if str(parts[0]).endswith(".py") else []
    return [*python, *map(str, parts), "--cfg-options", *OPTIONS, *options]


def run(*parts: object, options: list[str]) -> str:
    done = subprocess.run(
        command(*parts, options=options), env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=600
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0, output[-9000:]
    return output


@contextmanager
def started(*parts: object, options: list[str]) -> Iterator[subprocess.Popen]:
    """A process in a group of its own, that has trained for three iterations."""
    process = subprocess.Popen(
        command(*parts, options=options),
        env={**ENVIRONMENT, "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        seen = []
        for line in process.stdout:
            seen.append(line)
            if re.search(r"Iter\(train\) \[ *3/", line):
                break
        else:
            raise AssertionError("".join(seen)[-9000:])
        yield process
    finally:
        process.kill()
        process.communicate()
