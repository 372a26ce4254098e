"""Rows of the table: of steps that are run, of steps that are counted, and of batches that fit."""

import argparse
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from ..measure import TrainingStep, count_peak, count_step, interleaved_times, largest_batch, peak_bytes, step_cost
from ..method import merge
from .variants import Variant, build, options_for

NOT_MEASURED = (
    ValueError,
    ImportError,
    RuntimeError,
)  # what a method that does not fit the model raises, or the device


def run_worker(args: argparse.Namespace, variant: Variant) -> None:
    """Measure one method's memory in this process, which has no other; print it as the last line."""
    device = torch.device(args.device)
    result: dict[str, Any] = dict(baseline_bytes=peak_bytes(device))
    try:
        step = build(args, variant)
        step()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)  # compiling and tuning need more
        step()
        if device.type == "cuda" or not variant.compiled:  # main memory also holds the compiler
            result["peak_bytes"] = peak_bytes(device)
        if variant.compiled:  # inside a graph nothing can be counted
            result["trained"] = sum(p.numel() for p in step.model.parameters() if p.requires_grad)
        else:
            result |= asdict(step_cost(step))
    except NOT_MEASURED as error:
        result = dict(error=_describe(error))
    print(json.dumps(result))


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0]}"


def _in_own_process(args: argparse.Namespace, variant: Variant) -> dict[str, Any]:
    command = [sys.executable, "-m", "apla_mm.commands.benchmark", *args.given, "--worker", variant.name]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode < 0:
        return dict(error=f"its process was killed by signal {-done.returncode}; out of memory?")
    if done.returncode:
        return dict(error=(done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"])[-1])
    return json.loads(done.stdout.splitlines()[-1])


def measure(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    """Memory of each variant's step, in a process of its own, and its time, by turns with the others'."""
    rows: list[dict[str, Any]] = []
    for variant in variants:  # first, so that nothing else is on the device
        print(f"# {variant.name}", file=sys.stderr, flush=True)
        rows.append(dict(method=variant.name, **_in_own_process(args, variant)))
        if "error" in rows[0]:  # all else is compared with it
            raise SystemExit(f"{variant.name}: {rows[0]['error']}")
    steps = {v.name: build(args, v) for v, row in zip(variants, rows, strict=True) if "error" not in row}
    times = interleaved_times(steps, torch.device(args.device), args.rounds, args.warm_up)
    if args.profile:
        for name, step in steps.items():
            _profile(step, args.profile / name.replace(" ", "_").replace(",", ""))
    return _with_ratios(rows, times)


def count(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    """Bytes and arithmetic of each variant's step, on tensors without memory."""

    def count_one(variant: Variant) -> dict[str, Any]:
        return asdict(count_step(lambda: build(args, variant)))

    return _with_ratios([_counted_row(variant, count_one) for variant in variants], {})


def count_fits(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    """The largest batch of each variant, and the options that a training with it needs."""

    def count_one(variant: Variant) -> dict[str, Any]:
        def peak(size: int) -> int:
            return count_peak(lambda: build(argparse.Namespace(**{**vars(args), "batch_size": size}), variant))

        try:
            fit = largest_batch(peak, args.memory)
        except NOT_MEASURED:
            fit = largest_batch(peak, args.memory, smallest=2)  # a norm over a batch of one value has no variance
        return asdict(fit) | dict(options=options_for(args, variant, fit.batch_size) if fit.batch_size else "")

    return [_counted_row(variant, count_one) for variant in variants]


def _counted_row(variant: Variant, count_one: Callable[[Variant], dict[str, Any]]) -> dict[str, Any]:
    print(f"# {variant.name}", file=sys.stderr, flush=True)
    try:
        return dict(method=variant.name, **count_one(variant))
    except NOT_MEASURED as error:
        return dict(method=variant.name, error=_describe(error))


def _with_ratios(rows: list[dict[str, Any]], times: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Ratios to the first row; of times, the median of the rounds' ratios."""
    first = times[next(iter(times))] if times else []
    for row in rows:
        if "error" in row:
            continue
        if times:
            seconds = times[row["method"]]
            row["step_seconds"] = statistics.median(seconds)
            row["all_step_seconds"] = seconds
            row["step_ratio"] = statistics.median(a / b for a, b in zip(seconds, first, strict=True))
        for key in ("saved_bytes", "peak_bytes"):
            if key in row and rows[0].get(key):
                row[key.replace("bytes", "ratio")] = row[key] / rows[0][key]
    return rows


def measure_inference(args: argparse.Namespace, variants: list[Variant]) -> list[dict[str, Any]]:
    """Times of each variant's forward pass, of APLA also merged."""
    rows: list[dict[str, Any]] = []
    runs = {}
    for variant in variants:
        for merged in (False, True) if variant.name.startswith("APLA") else (False,):
            name = variant.name + ", merged" * merged
            try:
                step = build(args, variant)
            except NOT_MEASURED as error:
                rows.append(dict(method=name, error=_describe(error)))
                continue
            if merged:
                merge(step.model)
            step.model.eval()
            runs[name] = _inference(step)
            rows.append(dict(method=name))
    if not runs:
        raise SystemExit(f"{rows[0]['method']}: {rows[0]['error']}")
    return _with_ratios(rows, interleaved_times(runs, torch.device(args.device), args.rounds, args.warm_up))


def _inference(step: TrainingStep) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            step.forward()

    return run


def _profile(step: TrainingStep, folder: Path) -> None:
    """Write a trace for a viewer, and the operators by their own time."""
    from torch.profiler import ProfilerActivity

    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (step.device.type == "cuda")
    with torch.profiler.profile(activities=activities) as profiler:
        step()
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / "trace.json"))
    key = f"self_{step.device.type}_time_total"
    (folder / "operators.txt").write_text(profiler.key_averages().table(sort_by=key, row_limit=40))
