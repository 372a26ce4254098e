"""One table of a model in torch, adapted and merged, and of the files made of it: what each costs, and how it does."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.config import Config

from .benchmark import Cost, measure, onnx_run, torch_run
from .check_images import find_images, resized_copy
from .export import Exported, comparing
from .load import exported_module, load_model
from .onnx_file import OnnxModel
from .reference import Comparison, read_image
from .score import Score, score

_TRAINED, _MERGED = "torch, as trained", "torch, merged"


class Row(NamedTuple):
    """A way to run a model.

    Attributes:
        name: Of the way.
        megabytes: Of its file; of a merged model, of its weights.
        cost: Its time and memory.
        comparison: With the plain model.
        score: By the config's metric; None where it was not asked for.
    """

    name: str
    megabytes: float
    cost: Cost
    comparison: Comparison
    score: Score | None = None


def benchmark(
    cfg: Config,
    checkpoint: str,
    exported: Exported,
    others: Mapping[str, Path],
    images: Sequence[str | Path] = (),
    scored: int = 0,
) -> list[Row]:
    """Measure, compare and score a model in torch and as ONNX files.

    Args:
        cfg: The config.
        checkpoint: Its checkpoint or delta.
        exported: The ONNX file that was made of them.
        others: Files made of that one, each by the name that it has in the table.
        images: To compare by, as of :func:`export_model`; the first one is timed.
        scored: How many of the test's images are scored, the first ones; 0 for no score.

    Raises:
        ValueError: A score is asked for, and the config's test has no images or no metric.
    """
    files = {"onnxruntime": exported.path, **others}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.py"
        cfg.dump(config)
        image = resized_copy(find_images(cfg, images, Path(folder))[0][0], exported.size, Path(folder) / "image.png")
        pixels = read_image(image)
        ways: dict[str, tuple[Any, ...]] = {
            name: (torch_run, str(config), checkpoint, name == _MERGED, pixels) for name in (_TRAINED, _MERGED)
        }
        costs = measure(ways | {name: (onnx_run, str(path), pixels) for name, path in files.items()})
    size = None if "height" in exported.free else exported.size
    rows = []
    with comparing(cfg, checkpoint, exported, images) as compare:
        for name, cost in costs.items():
            run: Callable[[np.ndarray], dict[str, np.ndarray]]
            if name in files:
                run, size_of_file = OnnxModel(files[name]), files[name].stat().st_size
            else:
                run, size_of_file = _in_torch(cfg, checkpoint, name == _MERGED)
            found = score(cfg, run, size, scored) if scored else None
            rows.append(Row(name, size_of_file / 2**20, cost, compare(run), found))
    return rows


def _in_torch(cfg: Config, checkpoint: str, merged: bool) -> tuple[Callable[[np.ndarray], dict[str, np.ndarray]], int]:
    """What runs the exported module in torch, and the bytes of the checkpoint, or of the merged weights."""
    model, _ = load_model(cfg, checkpoint, merged)
    weights = sum(tensor.nbytes for tensor in model.state_dict().values())
    module = exported_module(cfg, model)

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            results = module(torch.from_numpy(images))
        return {name: result.numpy() for name, result in zip(module.outputs, results, strict=True)}

    return run, weights if merged else Path(checkpoint).stat().st_size


def markdown(rows: Sequence[Row]) -> str:
    """Rows as a table in Markdown; times also as multiples of the merged model's."""
    merged = next(row.cost.milliseconds for row in rows if row.name == _MERGED)
    names = ["run by", "file, MiB", "ms per image", "of merged", "peak memory, MiB", "largest difference", "equal"]
    first = rows[0].score
    names += [f"{first.name}, {first.images} images"] if first else []
    lines = [f"| {' | '.join(names)} |", f"|---|{'---:|' * (len(names) - 1)}"]
    for row in rows:
        ms = row.cost.milliseconds
        cells = [row.name, f"{row.megabytes:.1f}", f"{ms:.1f}", f"{ms / merged:.2f}", f"{row.cost.memory:.0f}"]
        cells += [f"{row.comparison.difference:.2g}", f"{100 * row.comparison.equal:.2f}%"]
        cells += [f"{row.score.value:.4g}"] if row.score else []
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
