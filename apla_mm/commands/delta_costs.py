"""What deltas cost: their size against the full checkpoint's, and the time to make, write, read, check and apply them.

apla-mm delta-costs --models vit_base_patch16_224 vit_large_patch16_224 --r 8 64 full
A timm ViT with a linear head of 150 classes, which is in the delta; random weights, float32, on the CPU. MB are 10^6
bytes. Save writes and flushes the delta's file, fingerprint digests the base, load reads and checks the file, merge
makes the plain state dict of base and delta, which digests the base too. A swap is the way into a task's block and back
out of it.
"""

import argparse
import copy
import io
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import timm
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import nn

import apla_mm

from ..delta import base_digests, extract_delta, fingerprint, load_delta, save_delta
from ..delta.base_file import merged_state
from . import command_parser, file_to_write, timm_model

CLASSES = 150
COLUMNS = (
    ("model", "left"),
    ("r", "right"),
    ("delta, MB", "right"),
    ("of the checkpoint", "right"),
    ("save, ms", "right"),
    ("fingerprint, s", "right"),
    ("load, ms", "right"),
    ("merge, s", "right"),
    ("swap, ms: median", "right"),
    ("p99", "right"),
)


@dataclass(frozen=True)
class Row:
    """One model and r; times in seconds."""

    model: str
    r: int | str
    checkpoint_bytes: int
    delta_bytes: int
    save: float
    fingerprint: float
    load: float
    merge: float
    swap_median: float
    swap_p99: float

    def cells(self) -> list[str]:
        return [
            self.model,
            str(self.r),
            f"{self.delta_bytes / 1e6:.2f}",
            f"{self.delta_bytes / self.checkpoint_bytes:.2%} of {self.checkpoint_bytes / 1e6:.0f} MB",
            f"{1e3 * self.save:.1f}",
            f"{self.fingerprint:.2f}",
            f"{1e3 * self.load:.1f}",
            f"{self.merge:.2f}",
            f"{1e3 * self.swap_median:.2f}",
            f"{1e3 * self.swap_p99:.2f}",
        ]


def number(text: str) -> int | str:
    return text if text == "full" else int(text)


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("delta-costs", __doc__)
    parser.add_argument(
        "--models", nargs="+", type=timm_model, metavar="NAME", default=["vit_base_patch16_224"], help="ViTs of timm"
    )
    parser.add_argument("--r", nargs="+", type=number, default=[8, 64, "full"], help="channels that train")
    parser.add_argument("--rounds", type=int, default=3, help="of the steps but swap; the median counts (default: 3)")
    parser.add_argument("--swaps", type=int, default=1000, help="swaps that are timed (default: 1000)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the figures here")
    args = parser.parse_args(argv)
    if args.rounds < 1 or args.swaps < 1:
        parser.error("--rounds and --swaps must be at least 1")
    return args


def seconds(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def trained_from(base: nn.Module, r: int | str) -> nn.Module:
    """A copy of which what trains has moved."""
    model = copy.deepcopy(base)
    apla_mm.adapt(model, r=r, trainable=["head.*"])
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=1e-2)
    return model


def checkpoint_bytes(model: nn.Module) -> int:
    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    return len(file.getbuffer())


def measure(name: str, base: nn.Module, r: int | str, rounds: int, swaps: int, folder: Path) -> Row:
    trained = trained_from(base, r)
    delta = extract_delta(trained, r=r)
    size = checkpoint_bytes(trained)
    del trained
    path = folder / "delta.safetensors"

    def median(function: Callable[[], object]) -> float:
        return statistics.median(seconds(function) for _ in range(rounds))

    save = median(lambda: save_delta(delta, path))
    state = base.state_dict()
    digests = median(lambda: fingerprint(base_digests(state, delta.channels, delta.tensors)))
    load = median(lambda: load_delta(path))
    merge = median(lambda: merged_state(delta, state))

    switch = apla_mm.TaskSwitch(base, {"task": path})

    def swap() -> None:
        with switch("task"):
            pass

    times = [seconds(swap) for _ in range(swaps + 10)][10:]  # the first ones warm up
    p99 = statistics.quantiles(times, n=100)[98] if len(times) > 1 else times[0]
    return Row(name, r, size, path.stat().st_size, save, digests, load, merge, statistics.median(times), p99)


def format_rows(rows: list[Row]) -> str:
    """A table in Markdown."""
    table = Table(box=box.MARKDOWN)
    for title, side in COLUMNS:
        table.add_column(title, justify="left" if side == "left" else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row.cells())
    console = Console(file=io.StringIO(), width=1000)  # a table in a file is not folded to a terminal
    with console.capture() as text:
        console.print(table)
    return text.get().strip()


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    torch.manual_seed(0)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in args.models:
            base = timm.create_model(name, num_classes=CLASSES).eval()
            rows += [measure(name, base, r, args.rounds, args.swaps, Path(folder)) for r in args.r]
    print(format_rows(rows))
    machine = dict(cpus=os.cpu_count(), threads=torch.get_num_threads(), torch=torch.__version__)
    print(f"\n{platform.machine()}, {machine['cpus']} CPUs, {machine['threads']} threads, torch {machine['torch']}")
    if args.json:
        figures = dict(machine=machine, swaps=args.swaps, rows=[asdict(row) for row in rows])
        args.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
