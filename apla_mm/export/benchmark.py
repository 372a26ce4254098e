"""Time and memory of a model as torch runs it, adapted and merged, and as exported, each in a process of its own."""

import multiprocessing
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

RUNS = 9  #: of each way


class Cost(NamedTuple):
    """Of one image.

    Attributes:
        milliseconds: The median of the runs.
        memory: The process's peak in MiB, with all that it has loaded.
    """

    milliseconds: float
    memory: float


def torch_run(config: str, checkpoint: str, merged: bool, image: np.ndarray) -> Callable[[], Any]:
    """What runs a config's exported module in torch, adapted or merged, with one thread.

    Args:
        config: The config file.
        checkpoint: Its checkpoint or delta.
        merged: Whether adapted layers are the plain ones.
        image: uint8 (3, H, W).
    """
    import torch
    from mmengine.config import Config

    from .load import exported_module, load_model

    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    cfg = Config.fromfile(config)
    module = exported_module(cfg, load_model(cfg, checkpoint, merged)[0])
    batch = torch.from_numpy(image[None])
    return lambda: module(batch)


def onnx_run(path: str, image: np.ndarray) -> Callable[[], Any]:
    """What runs an ONNX file with one thread; it loads no torch.

    Args:
        path: The file.
        image: uint8 (3, H, W).
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda: session.run(None, {"images": image[None]})


def measure(ways: Mapping[str, tuple[Any, ...]], runs: int = RUNS) -> dict[str, Cost]:
    """Time several ways to run a model, each in a process of its own.

    They take turns, so that whatever else the machine does meets all of them.

    Args:
        ways: By name, a function such as :func:`onnx_run` and its arguments.
        runs: How often each is run, after once that does not count.
    """
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        pools = {name: stack.enter_context(context.Pool(1)) for name in ways}
        for name, (make, *args) in ways.items():
            pools[name].apply(_prepare, (make, args))
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs):
            for name, pool in pools.items():
                taken[name].append(pool.apply(_timed))
        return {name: Cost(statistics.median(taken[name]), pool.apply(_peak)) for name, pool in pools.items()}


_prepared: list[Callable[[], Any]] = []  # what this process times, if measure has started it


def _prepare(make: Callable[..., Callable[[], Any]], args: Sequence[Any]) -> None:
    _prepared.append(make(*args))
    _prepared[0]()  # the first one allocates


def _timed() -> float:
    """Milliseconds of one run."""
    start = time.perf_counter()
    _prepared[0]()
    return 1000 * (time.perf_counter() - start)


def _peak() -> float:
    """This process's peak in MiB; what ``getrusage`` tells is not below the peak of the process that started it."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
