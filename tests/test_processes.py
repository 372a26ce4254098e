"""A failure in one process ends all, whatever its type: real processes that talk by gloo."""

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed

from apla_mm.delta import DeltaError
from apla_mm.processes import in_every_process, in_main_process

FAILURES = (
    ValueError("v"),
    RuntimeError("r"),
    FileNotFoundError("f"),
    KeyError("k"),
    DeltaError("d"),
    ZeroDivisionError(),
)


def _run(rank: int, folder: str, action: Callable[[int], Any], queue: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=3)
    start = time.monotonic()
    try:
        outcome = "gave", action(rank)
    except Exception as error:
        outcome = type(error).__name__, str(error)
    queue.put((rank, outcome, time.monotonic() - start))
    torch.distributed.barrier()


def in_three(folder: Path, action: Callable[[int], Any]) -> list[Any]:
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    processes = [context.Process(target=_run, args=(rank, str(folder), action, queue)) for rank in range(3)]
    for process in processes:
        process.start()
    results = sorted(queue.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    return [outcome for _, outcome, _ in results]


def test_what_each_gave(tmp_path: Path) -> None:
    assert in_three(tmp_path, lambda rank: in_every_process(lambda: rank * 10)) == [
        ("gave", 0),
        ("gave", 10),
        ("gave", 20),
    ]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda error: type(error).__name__)
def test_failure_of_one_is_that_of_all(tmp_path: Path, failure: Exception) -> None:
    def action(rank: int) -> None:
        if rank == 1:
            raise failure

    name = type(failure).__name__
    others = ("RuntimeError", f"rank 1 failed: {name}: {failure}")
    assert in_three(tmp_path, lambda rank: in_every_process(lambda: action(rank))) == [
        others,
        (name, str(failure)),
        others,
    ]


def test_main_process_alone_acts_and_its_failure_is_that_of_all(tmp_path: Path) -> None:
    def act() -> None:
        (tmp_path / f"{torch.distributed.get_rank()}.txt").write_text("here")
        raise DeltaError("no base")

    others = ("RuntimeError", "rank 0 failed: DeltaError: no base")
    assert in_three(tmp_path, lambda rank: in_main_process(act)) == [("DeltaError", "no base"), others, others]
    assert [path.name for path in tmp_path.glob("*.txt")] == ["0.txt"]


def test_one_process_alone() -> None:
    assert in_every_process(lambda: 3) == 3
    with pytest.raises(KeyError):
        in_every_process(lambda: {}["a"])
