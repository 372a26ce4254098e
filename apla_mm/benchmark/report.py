"""Rows as a table in Markdown and as a plot, and the machine that they are of."""

import os
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

MIB = 2**20
COLUMNS: dict[str, Callable[[dict[str, Any]], str]] = {
    "method": lambda row: row["method"],
    "trains": lambda row: f"{row['trained']:,}",
    "kept for backward, MiB": lambda row: _with_ratio(row, "saved"),
    "model, MiB": lambda row: f"{row['model_bytes'] / MIB:.1f}",
    "gradients, MiB": lambda row: f"{row['gradient_bytes'] / MIB:.1f}",
    "AdamW, MiB": lambda row: f"{row['optimizer_bytes'] / MIB:.1f}",
    "forward, GFLOP": lambda row: f"{row['forward_flops'] / 1e9:.3g}",
    "backward, GFLOP": lambda row: f"{row['backward_flops'] / 1e9:.3g}",
    "peak memory, MiB": lambda row: _with_ratio(row, "peak"),
    "largest batch": lambda row: f"{row['batch_size']}",
    "options": lambda row: row["options"],
    "time, ms": lambda row: f"{1e3 * row['step_seconds']:.0f} ({row['step_ratio']:.3f})",
}


def format_rows(rows: list[dict[str, Any]]) -> str:
    """A table in Markdown, and below it what could not be measured."""
    measured = [row for row in rows if "error" not in row]
    if not measured:
        return "\n".join(f"{row['method']}: not measured: {row['error']}" for row in rows)
    columns = {title: [_show_or_nothing(show, row) for row in measured] for title, show in COLUMNS.items()}
    columns = {title: cells for title, cells in columns.items() if any(cells)}
    lines = []
    for title, cells in columns.items():
        width = max(map(len, (title, *cells)))
        left = title in ("method", "options")
        rule = "-" * width if left else "-" * (width - 1) + ":"
        lines.append([cell.ljust(width) if left else cell.rjust(width) for cell in (title, rule, *cells)])
    text = [f"| {' | '.join(line)} |" for line in zip(*lines, strict=True)]
    if "baseline_bytes" in measured[0]:
        baseline = max(row["baseline_bytes"] for row in measured) / MIB
        text.append(f"\nPeak memory holds {baseline:.0f} MiB that a process has before there is a model.")
    text += [f"{row['method']}: not measured: {row['error']}" for row in rows if "error" in row]
    return "\n".join(text)


def _show_or_nothing(show: Callable[[dict[str, Any]], str], row: dict[str, Any]) -> str:
    try:
        return show(row)
    except KeyError:
        return ""


def _with_ratio(row: dict[str, Any], what: str) -> str:
    text = f"{row[f'{what}_bytes'] / MIB:.0f}"
    return f"{text} ({row[f'{what}_ratio']:.3f})" if f"{what}_ratio" in row else text


def plot(rows: list[dict[str, Any]], file: Path, title: str) -> None:
    """Draw time against memory."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    measured = [row for row in rows if "peak_ratio" in row]
    for i, row in enumerate(measured):
        ours = row["method"].startswith("APLA")
        edge = "black" if ours else "none"
        style: dict[str, Any] = dict(marker="o" if ours else "s", color=f"C{i % 10}", markeredgecolor=edge)
        position = (row["peak_ratio"], row["step_ratio"])
        axes.plot(*position, linestyle="none", markersize=9, label=f"{i + 1}  {row['method']}", **style)
        axes.annotate(str(i + 1), position, xytext=(6, 4), textcoords="offset points", fontsize=9)
    one = f"{rows[0]['method']} = 1"
    axes.set(xlabel=f"peak memory, {one}", ylabel=f"time of a step, {one}", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right center", fontsize=8)
    figure.savefig(file, dpi=110)


def machine(device: str) -> dict[str, Any]:
    """What the figures are of."""
    name = platform.processor()
    if device.startswith("cuda"):
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), name)
    return dict(device=name, threads=torch.get_num_threads(), cores=os.cpu_count(), torch=torch.__version__)
