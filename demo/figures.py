"""The demo's two figures."""

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import Patch

COLOURS = ("#8d99ae", "#d1495b", "#30638e")


def draw_predictions(methods: dict[str, list[dict[str, Any]]], palette: list[list[int]], path: Path) -> None:
    """One row per scene: image, truth, and what each method made of it.

    Args:
        methods: for each method its scenes, with ``image`` uint8 (H, W, 3) and ``truth``, ``prediction`` int (H, W).
        palette: RGB colours of background and digits 0 to 9.
        path: of the PNG.
    """
    colours = np.array(palette, np.uint8)
    scenes = next(iter(methods.values()))
    columns = {
        "scene": [s["image"] for s in scenes],
        "truth": [colours[s["truth"]] for s in scenes],
        **{name: [colours[s["prediction"]] for s in results] for name, results in methods.items()},
    }
    shape = (len(scenes), len(columns))
    fig, axes = plt.subplots(*shape, figsize=(2 * shape[1], 2 * shape[0] + 0.7), layout="constrained", squeeze=False)
    for column, (name, images) in zip(axes.T, columns.items(), strict=True):
        column[0].set_title(name, fontsize=13)
        for axis, image in zip(column, images, strict=True):
            axis.imshow(image, interpolation="nearest")
            axis.set_axis_off()
    keys = [Patch(color=colours[d + 1] / 255, label=str(d)) for d in range(10)]
    fig.legend(handles=keys, loc="outside lower center", ncols=10, frameon=False, fontsize=12, handlelength=1)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def draw_losses(methods: dict[str, list[float]], path: Path) -> None:
    """Training losses over steps, exponentially smoothed.

    Args:
        methods: the loss of each step, for each method.
        path: of the PNG.
    """
    fig, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for (name, losses), colour in zip(methods.items(), COLOURS, strict=True):
        steps = np.arange(1, len(losses) + 1)
        axis.plot(steps, losses, color=colour, alpha=0.15, linewidth=0.8)
        axis.plot(steps, _smooth(losses), color=colour, linewidth=2, label=name)
    axis.set(xlabel="step", ylabel="training loss (cross-entropy)", xlim=(0, None), ylim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.legend(frameon=False)
    fig.savefig(path, dpi=110)
    plt.close(fig)


def _smooth(values: list[float], momentum: float = 0.95) -> np.ndarray:
    """Exponential moving average, unbiased at the beginning."""
    mean, weight, smoothed = 0.0, 0.0, []
    for value in values:
        mean = momentum * mean + (1 - momentum) * value
        weight = momentum * weight + (1 - momentum)
        smoothed.append(mean / weight)
    return np.array(smoothed)
