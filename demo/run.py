"""Adapts a small pretrained ViT to segmenting handwritten digits: head-only, by APLA, and fully fine-tuned.

From the repository's root::

    python demo/run.py

The three trainings are ordinary ones of mmengine's ``Runner``, alike but for what ``configs/demo/digits_*.py`` say.
"""

import argparse
import json
import os
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
from training import load_config, train

ROOT = Path(__file__).resolve().parents[1]
DATA_ROOT = Path("data/digits")
METHODS = {"head": "head-only", "apla": "APLA", "full": "full fine-tuning"}
LEARNING_RATES = (3e-4, 1e-3, 3e-3, 1e-2)
SHOWN_SCENES = 5


@dataclass
class Result:
    """What one method gave and cost."""

    method: str
    miou: float
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
            f"{r.miou:.1f}",
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


def compare_methods(console: Console, steps: int, out: Path, seed: int) -> None:
    """Trains all methods, measures them, and writes tables and figures."""
    start = time.perf_counter()
    columns = [TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TextColumn("steps")]
    runners, records = {}, {}
    with Progress(*columns, TimeElapsedColumn(), TimeRemainingColumn(), console=console) as progress:
        task = progress.add_task("", total=len(METHODS) * (steps + ROUNDS))
        for method, title in METHODS.items():
            progress.update(task, description=f"training: {title}")
            cfg = load_config(method, steps, out / method, seed)
            runners[method], records[method] = train(cfg, lambda: progress.advance(task))
        scenes = {method: predict(runner, SHOWN_SCENES) for method, runner in runners.items()}
        progress.update(task, description="measuring all in turn")
        times = step_times(runners, lambda: progress.advance(task))

    results = [
        Result(METHODS[m], records[m].metrics["mIoU"], *trained_parameters(runner), times[m], activation_mib(runner))
        for m, runner in runners.items()
    ]
    table = results_table(results)
    report = dict(steps=steps, seed=seed, results=[asdict(r) for r in results])
    (out / "results.json").write_text(json.dumps(report, indent=2) + "\n")
    (out / "results.md").write_text(to_markdown(table))
    draw_predictions({METHODS[m]: s for m, s in scenes.items()}, cfg.metainfo.palette, out / "predictions.png")
    draw_losses({METHODS[m]: r.losses for m, r in records.items()}, out / "losses.png")

    console.print(to_terminal(table, f"{steps} steps each, {SPLITS['validation']['val']} validation scenes"))
    for name in ("results.md", "results.json", "predictions.png", "losses.png"):
        console.print(os.path.relpath(out / name), highlight=False)
    console.print(f"logs and checkpoints: {os.path.relpath(out)}/{{{','.join(METHODS)}}}", highlight=False)
    console.print(f"{time.perf_counter() - start:.0f} s in all", highlight=False)


def search_learning_rates(console: Console, steps: int, out: Path, seed: int) -> None:
    """Trains each method at several learning rates, and compares them on training scenes held out for that.

    The held-out scenes and the others share no handwritten digit; validation scenes are not looked at.
    """
    for method, title in METHODS.items():
        for lr in LEARNING_RATES:
            cfg = load_config(method, steps, out / "lr_search" / f"{method}_{lr:g}", seed)
            cfg.optim_wrapper.optimizer.lr = lr
            cfg.val_dataloader.dataset = dict(cfg.train_dataloader.dataset, indices=-SPLITS["training"]["tune"])
            cfg.train_dataloader.dataset.indices = SPLITS["training"]["train"]
            _, record = train(cfg)
            console.print(f"{title:>16}  lr {lr:g}  mIoU {record.metrics['mIoU']:.1f}", highlight=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=400, help="training steps of each method (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("work_dirs/demo"), help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--lr-search",
        action="store_true",
        help="only compare learning rates, on training scenes held out for that",
    )
    args = parser.parse_args()
    if args.steps < 50:
        parser.error("--steps must be at least 50: the learning rate warms up for 40")
    out = args.out.resolve()
    os.chdir(ROOT)  # paths in the configs are relative to it
    # Matrices this small gain little from more threads, and lose much where other processes hold the cores.
    torch.set_num_threads(1)
    console = Console()
    with console.status(f"making the data set in {DATA_ROOT}"):
        make_dataset(DATA_ROOT)
    (search_learning_rates if args.lr_search else compare_methods)(console, args.steps, out, args.seed)


if __name__ == "__main__":
    main()
