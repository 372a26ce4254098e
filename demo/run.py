"""Adapts a small pretrained ViT to segmenting handwritten digits: head-only, by APLA, and fully fine-tuned.

From the repository's root::

    python demo/run.py

All trainings are ordinary ones of mmengine's ``Runner``, alike but for what ``configs/demo/digits_*.py`` say: what
trains of the backbone, and its learning rate, which ``apla-mm compare`` chose (``demo/learning_rates.md``).
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from costs import ROUNDS, activation_mib, step_times, trained_parameters
from figures import draw_losses, draw_predictions
from make_dataset import SPLITS, make_dataset
from mmengine.dataset import pseudo_collate
from mmengine.runner import Runner
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table
from training import RecordHook, load_config, train

ROOT = Path(__file__).resolve().parents[1]
DATA_ROOT = Path("data/digits")
METHODS = {"head": "head-only", "apla": "APLA, W_O in full", "full": "full fine-tuning"}
SHOWN_SCENES = 5


@dataclass
class Result:
    """What one method gave, by seed, and cost."""

    method: str
    mious: list[float]
    backbone_parameters: int
    head_parameters: int
    step_ms: float
    activation_mib: float


def predict(runner: Runner, count: int) -> list[dict[str, Any]]:
    """Images uint8 (H, W, 3), true and predicted label maps int64 (H, W) of the first validation scenes."""
    dataset = runner.val_dataloader.dataset
    runner.model.eval()
    scenes = []
    for i in range(count):
        sample = dataset[i]
        with torch.no_grad():
            output = runner.model.test_step(pseudo_collate([sample]))[0]
        scenes.append(
            dict(
                image=sample["inputs"].flip(0).permute(1, 2, 0).numpy(),  # BGR, as OpenCV reads it
                truth=sample["data_samples"].gt_sem_seg.data[0].numpy(),
                prediction=output.pred_sem_seg.data[0].cpu().numpy(),
            )
        )
    return scenes


def results_table(results: list[Result]) -> list[list[str]]:
    """The results as text, the header first."""
    head = ["method", "mIoU, %", "trained in backbone", "trained in head", "step, ms", "kept for backward, MiB"]
    rows = [
        [
            r.method,
            f"{statistics.fmean(r.mious):.1f}" + (f" ± {statistics.stdev(r.mious):.1f}" if len(r.mious) > 1 else ""),
            f"{r.backbone_parameters:,}",
            f"{r.head_parameters:,}",
            f"{r.step_ms:.0f}",
            f"{r.activation_mib:.1f}",
        ]
        for r in results
    ]
    return [head, *rows]


def to_markdown(table: list[list[str]]) -> str:
    """A table of GitHub's Markdown."""
    rule = ["---"] + ["---:"] * (len(table[0]) - 1)
    return "".join("| " + " | ".join(row) + " |\n" for row in [table[0], rule, *table[1:]])


def to_terminal(table: list[list[str]], title: str) -> Table:
    """A table of rich."""
    view = Table(title=title)
    for i, name in enumerate(table[0]):
        view.add_column(name, justify="right" if i else "left", no_wrap=i == 0)
    for row in table[1:]:
        view.add_row(*row)
    return view


def compare_methods(console: Console, steps: int, out: Path, seeds: int) -> None:
    """Trains all methods, measures them, and writes tables and figures."""
    start = time.perf_counter()
    columns = [TextColumn("{task.description:<34}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")]
    runners: dict[str, Runner] = {}
    records: dict[str, list[RecordHook]] = {method: [] for method in METHODS}
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=len(METHODS) * (seeds * steps + ROUNDS))
        for seed in range(seeds):
            for method, title in METHODS.items():
                progress.update(task, description=f"training: {title}, seed {seed}")
                cfg = load_config(method, steps, out / f"{method}_seed{seed}", seed)
                runner, record = train(cfg, lambda: progress.advance(task))
                runners.setdefault(method, runner)
                records[method].append(record)
        scenes = {method: predict(runner, SHOWN_SCENES) for method, runner in runners.items()}
        progress.update(task, description="measuring all in turn")
        times = step_times(runners, lambda: progress.advance(task))

    results = [
        Result(title, [r.metrics["mIoU"] for r in records[m]], *parts, times[m], activation_mib(runners[m]))
        for m, title in METHODS.items()
        for parts in [trained_parameters(runners[m])]
    ]
    table = results_table(results)
    report = dict(steps=steps, seeds=seeds, results=[asdict(r) for r in results])
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "results.md").write_text(to_markdown(table))
    palette = runners["apla"].val_dataloader.dataset.metainfo["palette"]
    draw_predictions({METHODS[m]: s for m, s in scenes.items()}, palette, out / "predictions.png")
    draw_losses({title: records[m][0].losses for m, title in METHODS.items()}, out / "losses.png")

    labelled, others = SPLITS["training"][1], SPLITS["validation"][1]
    title = f"{labelled} labelled scenes, {steps} steps, {seeds} seeds; mIoU on {others} other scenes"
    console.print(to_terminal(table, title))
    for name in ("results.md", "results.json", "predictions.png", "losses.png"):
        console.print(os.path.relpath(out / name), highlight=False)
    console.print(f"logs and checkpoints: {os.path.relpath(out)}/{{{','.join(METHODS)}}}_seed*", highlight=False)
    console.print(f"{time.perf_counter() - start:.0f} s in all", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="training steps of each run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s")
    parser.add_argument("--seeds", type=int, default=3, help="runs of each method (default: %(default)s)")
    args = parser.parse_args()
    if args.steps < 50:
        parser.error("--steps must be at least 50: the learning rate warms up for 20")
    if args.seeds < 1:
        parser.error("--seeds must be 1 or more")
    out = args.out.resolve()
    os.chdir(ROOT)  # paths in the configs are relative to it
    # Matrices this small gain little from more threads, and lose much where other processes hold the cores.
    torch.set_num_threads(1)
    console = Console()
    with console.status(f"making the data set in {DATA_ROOT}"):
        make_dataset(DATA_ROOT)
    compare_methods(console, args.steps, out, args.seeds)


if __name__ == "__main__":
    main()
