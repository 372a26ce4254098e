"""What a model costs as torch runs it, adapted and merged, and as exported: file, time and memory."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Cost(NamedTuple):
    """Of one image.

    Attributes:
        name: Of what was run.
        megabytes: Of the file.
        milliseconds: The median of the runs.
        memory: The process's peak in MiB, with all that it has loaded.
    """

    name: str
    megabytes: float
    milliseconds: float
    memory: float


def measure_torch(config: str, checkpoint: str, merged: bool, image: np.ndarray, runs: int) -> Any:
    """Time the exported module in torch, adapted or merged, in this process.

    Returns:
        Milliseconds and MiB.
    """
    import torch
    from mmengine.config import Config

    from .load import exported_module, load_model

    torch.set_num_threads(1)
    cfg = Config.fromfile(config)
    module = exported_module(cfg, load_model(cfg, checkpoint, merged)[0])
    batch = torch.from_numpy(image[None])
    with torch.no_grad():
        return _measure(lambda: module(batch), runs)


def measure_onnx(path: str, image: np.ndarray, runs: int) -> Any:
    """Time an ONNX file in this process, which loads no torch for it.

    Returns:
        Milliseconds and MiB.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return _measure(lambda: session.run(None, {"images": image[None]}), runs)


def _measure(run: Callable[[], Any], runs: int) -> tuple[float, float]:
    run()  # the first one allocates
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times), _peak()


def _peak() -> float:
    """This process's peak in MiB; what ``getrusage`` tells is not below the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def benchmark(
    config: str, checkpoint: str, files: Sequence[tuple[str, Path]], image: np.ndarray, runs: int = 5
) -> list[Cost]:
    """Measure a model in torch and as ONNX files, each in a process of its own with one thread.

    Args:
        config: Its config file.
        checkpoint: Its checkpoint or delta.
        files: ONNX files, each with the name it has in the table.
        image: uint8 (3, H, W).
        runs: How often each is run.
    """
    size = Path(checkpoint).stat().st_size / 2**20
    costs = []
    for name, merged in (("torch, as trained", False), ("torch, merged", True)):
        costs.append(Cost(name, size, *_apart(measure_torch, config, checkpoint, merged, image, runs)))
    for name, path in files:
        costs.append(Cost(name, path.stat().st_size / 2**20, *_apart(measure_onnx, str(path), image, runs)))
    return costs


def _apart(function: Callable[..., Any], *args: Any) -> Any:
    """Call a function in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def table(costs: Sequence[Cost]) -> str:
    """Costs as a table in Markdown."""
    lines = ["| run by | file, MiB | ms per image | peak memory, MiB |", "|---|---:|---:|---:|"]
    lines += [f"| {c.name} | {c.megabytes:.1f} | {c.milliseconds:.1f} | {c.memory:.0f} |" for c in costs]
    return "\n".join(lines)
