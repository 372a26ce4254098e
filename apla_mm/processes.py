"""What the processes of a run do together, so that none waits for one that has failed."""

from collections.abc import Callable
from typing import TypeVar

from mmengine.dist import all_gather_object, is_main_process

T = TypeVar("T")


def in_every_process(action: Callable[[], T]) -> T:
    """Do something in each process; where it fails in one, it fails in all.

    Args:
        action: What to do. It must not wait for other processes itself.

    Returns:
        What it gave in this process.

    Raises:
        Exception: What it raised in this process, of whatever type.
        RuntimeError: It failed in another; names rank, type and message.
    """
    failure = None
    try:
        result = action()
    except Exception as error:
        failure = error
    failures = all_gather_object(failure and f"{type(failure).__name__}: {failure}")
    if failure is not None:
        raise failure
    for rank, text in enumerate(failures):
        if text:
            raise RuntimeError(f"rank {rank} failed: {text}")
    return result


def in_main_process(action: Callable[[], object]) -> None:
    """Do something in the first process, while the others wait; see :func:`in_every_process`."""
    in_every_process(lambda: action() if is_main_process() else None)
