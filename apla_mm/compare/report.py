"""What a comparison found, as text and as one page with plots."""

import base64
import html
import io
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from ..delta.atomic_file import write_atomic
from ..text import format_bytes, table
from .comparison import Comparison
from .scores.average_precision import average_precision
from .scores.bootstrap import Difference, ScoreOf, accuracy, difference, mean_iou
from .scores.predictions import boxes_figure, predictions_figure
from .trials.run_trial import FAILED, TRAINED
from .trials.search import at_edge
from .trials.study import HEAD, Scores
from .trials.trial import AREAS, HITS, PREDICTIONS


@dataclass(frozen=True)
class Row:
    """One method on one fraction of the training set.

    Attributes:
        scores: Of its final runs that ended, by seed.
        lr: The learning rate that was chosen, of the heads for ``head``.
        edge: Whether that rate is the lowest or highest of those that were tried.
        failed: How many of its runs failed.
        records: What its final runs wrote: parameters that train, time and memory.
    """

    method: str
    fraction: float
    scores: dict[int, float]
    lr: float | None
    head_lr: float | None
    tried: dict[float, float | None]
    edge: bool
    failed: int
    records: list[dict[str, Any]]

    @property
    def mean(self) -> float:
        """Of the scores; nan if there is none."""
        return statistics.fmean(self.scores.values()) if self.scores else math.nan

    @property
    def spread(self) -> float:
        """Standard deviation of the scores; nan of fewer than two."""
        return statistics.stdev(self.scores.values()) if len(self.scores) > 1 else math.nan


def rows_of(comparison: Comparison) -> list[Row]:
    """What is known of each method on each fraction."""
    scores, study = comparison.scores(), comparison.study
    return [_row(comparison, scores, m, f) for f in study.fractions for m in study.methods]


def _row(comparison: Comparison, scores: Scores, method: str, fraction: float) -> Row:
    study = comparison.study
    tried = study.rates_of(scores, method, fraction)
    finals = study.finals(scores, method, fraction)
    files = [comparison.folder / trial.folder / TRAINED for trial in finals]
    return Row(
        method,
        fraction,
        {t.seed: score for t in finals if (score := scores.get(t)) is not None},
        study.rate(scores, method, fraction),
        study.head_rate(scores, fraction),
        tried,
        bool(tried) and at_edge(tried),
        sum(scores.get(t, 0.0) is None for t in finals) + sum(score is None for score in tried.values()),
        [json.loads(file.read_text()) for file in files if file.exists()],
    )


def differences(comparison: Comparison, fraction: float) -> dict[tuple[str, str], Difference]:
    """Of each pair of methods, the better one first, where each test image's part in the score is known."""
    runs = {m: _runs(comparison, m, fraction) for m in comparison.study.methods}
    runs = {method: found for method, found in runs.items() if found}
    images = {tuple(names) for found in runs.values() for names, _ in found}
    if len(images) != 1:
        return {}
    count = len(images.pop())
    score = {method: [of for _, of in found] for method, found in runs.items()}
    found = {}
    for one, other in combinations(score, 2):
        result = difference(score[one], score[other], count)
        if result.mean < 0:
            one, other, result = other, one, Difference(-result.mean, -result.high, -result.low)
        found[one, other] = result
    return found


def _runs(comparison: Comparison, method: str, fraction: float) -> list[tuple[list[str], ScoreOf]]:
    """The images and the score of each final run, by what it wrote of each image."""
    finals = comparison.study.finals(comparison.scores(), method, fraction)
    folders = [comparison.folder / trial.folder for trial in finals]
    if comparison.metric == "mIoU":
        return [mean_iou(folder / AREAS) for folder in folders if (folder / AREAS).exists()]
    if comparison.metric == "accuracy/top1":
        return [accuracy(folder / HITS) for folder in folders if (folder / HITS).exists()]
    kind = comparison.metric.rpartition("/")[2].removesuffix("_mAP")
    if kind not in ("bbox", "segm") or not comparison.annotations:
        return []
    files = [folder / f"{PREDICTIONS}.{kind}.json" for folder in folders]
    classes = comparison.test_classes()
    return [average_precision(file, comparison.annotations, kind, classes) for file in files if file.exists()]


def write_report(comparison: Comparison, title: str) -> None:
    """Write ``report.md`` and ``report.html`` into a comparison's folder."""
    comparison.keep_chosen()
    rows = rows_of(comparison)
    parts = [f"# {title}", _about(comparison), _results(rows, comparison.metric)]
    for fraction in comparison.study.fractions:
        parts.append(_pairs(differences(comparison, fraction), fraction, comparison.metric))
    parts += [_searches(rows, comparison.metric), _failures(comparison)]
    text = "\n\n".join(filter(None, parts)) + "\n"
    write_atomic(text.encode(), comparison.folder / "report.md")
    figures = [*_plots(rows, comparison.metric), *_predictions(comparison, rows)]
    plots = [_image(figure) for figure in figures]
    body = f"<pre>{html.escape(text)}</pre>" + "".join(f'<p><img src="data:image/png;base64,{p}"></p>' for p in plots)
    page = f'<!doctype html><meta charset="utf-8"><title>{html.escape(title)}</title>{body}\n'
    write_atomic(page.encode(), comparison.folder / "report.html")


def _about(comparison: Comparison) -> str:
    study = comparison.study
    heads = (
        f"The heads' rate is {study.head_lr:g} for all methods."
        if study.head_lr is not None
        else f"The heads' rate was chosen first, by {study.trials} trials with a frozen backbone, and is all methods'."
    )
    return (
        f"Each method's learning rate was chosen by {study.trials} trials on {comparison.held_out:.0%} of the training "
        f"images, held out, with seed 0. {heads} Then each was trained on all of the fraction with {study.seeds} seeds "
        "and scored on the test set once."
    )


def _results(rows: Sequence[Row], metric: str) -> str:
    head: tuple[str, ...] = ("fraction", "method", "runs", f"{metric}, mean", "deviation", "learning rate")
    head = (*head, "heads' rate", "trains, backbone", "trains, all", "to store", "step, s", "peak memory")
    cells = [
        (
            f"{row.fraction:g}",
            row.method,
            str(len(row.scores)),
            _number(row.mean),
            _number(row.spread),
            "frozen" if row.method == HEAD else _rate(row.lr) + _how_chosen(row),
            _rate(row.head_lr),
            *(_record(row, key) for key in ("backbone", "all", "stored", "step", "peak")),
        )
        for row in rows
    ]
    return f"## Results\n\n{table(head, cells, left=2, markdown=True)}"


def _pairs(pairs: dict[tuple[str, str], Difference], fraction: float, metric: str) -> str:
    title = f"## Pairs, fraction {fraction:g}\n\n"
    if not pairs:
        return (
            f"{title}None can be compared: two methods need final runs on the same test images, and {metric} what each "
            "image adds to it, as mIoU, COCO's AP and accuracy/top1 have."
        )
    cells = [
        (one, other, f"{d.mean:+.3g}", f"{d.low:+.3g} to {d.high:+.3g}", "yes" if d.decided else "no")
        for (one, other), d in sorted(pairs.items(), key=lambda pair: -pair[1].mean)
    ]
    head = ("ahead", "behind", f"{metric} by", "95 % interval", "decided")
    about = "Bootstrap over test images, paired, and over runs.\n\n"
    return title + about + table(head, cells, left=2, markdown=True)


def _searches(rows: Sequence[Row], metric: str) -> str:
    cells = [
        (f"{row.fraction:g}", row.method, f"{rate:g}", "failed" if score is None else _number(score))
        for row in rows
        for rate, score in sorted(row.tried.items())
    ]
    head = ("fraction", "method", "rate", f"{metric}, held out")
    return f"## Learning rates tried\n\n{table(head, cells, left=2, markdown=True)}" if cells else ""


def _failures(comparison: Comparison) -> str:
    lines = []
    for file in sorted(comparison.folder.glob(f"*/*/*/*/{FAILED}")):
        failure = json.loads(file.read_text())
        lines.append(f"- `{file.parent.relative_to(comparison.folder)}`, {failure['tool']}: {failure['last']}")
    return "## Failed\n\n" + "\n".join(lines) if lines else ""


def _how_chosen(row: Row) -> str:
    if row.lr is not None and not row.tried:
        return " (given)"
    return " (at the edge)" if row.edge else ""


def _record(row: Row, key: str) -> str:
    if key == "stored":  # what a delta or an adapter's file holds, in float32
        return format_bytes(4 * row.records[0]["all"]) if row.records else "-"
    values = [record[key] for record in row.records if record.get(key) is not None]
    if not values:
        return "-"
    middle = statistics.median(values)
    return format_bytes(middle) if key == "peak" else f"{middle:.3f}" if key == "step" else f"{int(middle):,}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.4g}"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:g}"


def _plots(rows: Sequence[Row], metric: str) -> list[Any]:
    """Score against what trains, against learning rate, and, where there are several, against r and the fraction."""
    from matplotlib.figure import Figure

    figures = []
    full = max((row.fraction for row in rows), default=1.0)
    size = Figure(figsize=(7, 4))
    axes = size.subplots()
    for row in rows:
        if row.fraction == full and row.scores and row.records:
            trains = max(1, row.records[0]["backbone"])
            spread = 0 if math.isnan(row.spread) else row.spread
            axes.errorbar(trains, row.mean, spread, fmt="o", capsize=3, label=row.method)
    axes.set(xscale="log", xlabel="parameters of the backbone that train", ylabel=metric)
    figures.append(size)
    rate = Figure(figsize=(7, 4))
    axes = rate.subplots()
    for row in rows:
        known = sorted((lr, score) for lr, score in row.tried.items() if score is not None)
        if row.fraction == full and known:
            axes.plot(*zip(*known, strict=True), "o-", label=row.method)
    axes.set(xscale="log", xlabel="learning rate", ylabel=f"{metric}, held out")
    figures.append(rate)
    if len({row.method for row in rows if _is_apla(row)}) > 1:
        channels = Figure(figsize=(7, 4))
        axes = channels.subplots()
        axes.set(xscale="log", xlabel="channels that train", ylabel=metric)
        ticks: dict[int, str] = {}
        for fraction in dict.fromkeys(row.fraction for row in rows):
            those = [row for row in rows if row.fraction == fraction and _is_apla(row) and row.scores and row.records]
            points = sorted((row.records[0]["backbone"], row.mean, row.spread, row.method) for row in those)
            if points:
                trains, means, spreads, names = zip(*points, strict=True)
                errors = [0 if math.isnan(s) else s for s in spreads]
                axes.errorbar(trains, means, errors, fmt="o-", capsize=3, label=f"fraction {fraction:g}")
                ticks |= dict(zip(trains, (name.partition(":")[2] for name in names), strict=True))
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.minorticks_off()
        figures.append(channels)
    if len({row.fraction for row in rows}) > 1:
        data = Figure(figsize=(7, 4))
        axes = data.subplots()
        for method in dict.fromkeys(row.method for row in rows):
            own = sorted((r.fraction, r.mean, r.spread) for r in rows if r.method == method and r.scores)
            if own:
                fractions, means, spreads = zip(*own, strict=True)
                axes.errorbar(fractions, means, [0 if math.isnan(s) else s for s in spreads], fmt="o-", label=method)
        axes.set(xscale="log", xlabel="fraction of the training set", ylabel=metric)
        figures.append(data)
    for figure in figures:
        if figure.axes[0].get_legend_handles_labels()[0]:
            figure.axes[0].legend()
    return figures


def _is_apla(row: Row) -> bool:
    return row.method.partition(":")[0] == "apla"


def _predictions(comparison: Comparison, rows: Sequence[Row], most: int = 4) -> list[Any]:
    """What the first seed of each method made of a few test images: label maps, or boxes."""
    fraction = max((row.fraction for row in rows), default=1.0)
    scores = comparison.scores()
    first = {
        row.method: comparison.folder / trial.folder
        for row in rows
        if row.fraction == fraction
        for trial in comparison.study.finals(scores, row.method, fraction)[:1]
    }
    maps = {m: own for m, own in first.items() if (own / PREDICTIONS).is_dir() and (own / AREAS).exists()}
    if maps:
        with np.load(next(iter(maps.values())) / AREAS) as areas:
            images = list(zip(areas["images"].tolist(), areas["labels"].tolist(), strict=True))
            classes = areas["union"].shape[1]
        chosen = _some([pair for pair in images if Path(pair[0]).exists()], most)
        folders = {method: own / PREDICTIONS for method, own in maps.items()}
        return [predictions_figure(chosen, folders, classes)] if chosen else []
    boxes = {m: file for m, own in first.items() if (file := own / f"{PREDICTIONS}.bbox.json").exists()}
    if boxes and comparison.annotations:
        shown = _some([file for file in map(Path, comparison.test_images()) if file.exists()], most)
        return [boxes_figure(comparison.annotations, shown, boxes)] if shown else []
    return []


def _some(items: Sequence[Any], most: int) -> list[Any]:
    return list(items[:: max(1, len(items) // most)][:most])


def _image(figure: Any) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight")
    return base64.b64encode(buffer.getvalue()).decode()
