"""A run as a plot."""

import io
import json
from pathlib import Path

from matplotlib.figure import Figure

SCORES = ("mIoU", "coco/segm_mAP", "coco/bbox_mAP")


class Plot(Figure):
    """A figure that draws itself in a notebook, whatever matplotlib is told there."""

    def _repr_png_(self) -> bytes:
        buffer = io.BytesIO()
        self.savefig(buffer, format="png")
        return buffer.getvalue()


def plot_run(work_dir: Path) -> Plot:
    """The loss of training and the scores of validation, against steps.

    Args:
        work_dir: Of the run; where it went on after it was cut off, all its logs.

    Raises:
        FileNotFoundError: There are no logs.
    """
    files = sorted(work_dir.glob("*/vis_data/scalars.json")) or sorted(work_dir.glob("vis_data/*.json"))
    lines = [json.loads(line) for file in files for line in file.read_text().splitlines() if line.strip()]
    losses = {line["step"]: line["loss"] for line in lines if "loss" in line}
    if not losses:
        raise FileNotFoundError(f"'{work_dir}' has no log of a training run")
    scores = {line["step"]: line for line in lines if "loss" not in line and "lr" not in line}
    names = [name for name in SCORES if any(name in line for line in scores.values())]
    figure = Plot(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(*zip(*sorted(losses.items()), strict=True))
    left.set(xlabel="step", ylabel="loss")
    for name in names:
        points = sorted((step, line[name]) for step, line in scores.items() if name in line)
        right.plot(*zip(*points, strict=True), "o-", label=name)
    right.set(xlabel="step", ylabel="validation")
    if names:
        right.legend()
    return figure
