"""A failure in one process ends all, whatever its type: real processes that talk by gloo."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch.distributed
from helpers.processes import in_group

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


def outcome(rank: int, action: Callable[[int], Any]) -> tuple[str, Any]:
    try:
        return "gave", action(rank)
    except Exception as error:
        return type(error).__name__, str(error)


def in_three(folder: Path, action: Callable[[int], Any]) -> list[Any]:
    return in_group(outcome, folder, action, processes=3, start_method="fork")


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
