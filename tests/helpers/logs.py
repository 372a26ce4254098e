"""What Runners leave to be read."""

import json
from pathlib import Path
from typing import Any


def log_of(work_dir: Path) -> str:
    """The text logs of all runs in a folder, one after another."""
    return "".join(path.read_text() for path in sorted(work_dir.glob("*/*.log")))


def scalars_of(work_dir: Path) -> list[dict[str, Any]]:
    """The scalars of all runs in a folder, one after another: of iterations that were logged, and of validations."""
    lines = (line for path in sorted(work_dir.glob("*/vis_data/scalars.json")) for line in path.read_text().split("\n"))
    return [json.loads(line) for line in lines if line]
