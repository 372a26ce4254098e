"""Images and label maps, read as a check of the data needs them."""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import mmcv
import numpy as np
from mmengine.fileio import get

T = TypeVar("T")


class DataError(ValueError):
    """The data are not as the config says; the message names the file and what was expected."""


class UnreadableError(DataError):
    """An image or label map cannot be read."""


def check_evenly(
    samples: Sequence[T], check: Callable[[T], object], time_limit: float | None, unreadable: list[str] | None = None
) -> int:
    """Check samples in an order spread evenly over all of them, by threads, until the time is over.

    Args:
        samples: What to check.
        check: Raises what is wrong with a sample.
        time_limit: Seconds, None for all samples.
        unreadable: Takes what is said of files that cannot be read; None raises it.

    Returns:
        How many samples were checked.
    """

    def check_one(sample: T) -> None:
        try:
            check(sample)
        except UnreadableError as error:
            if unreadable is None:
                raise
            unreadable.append(str(error))

    # the golden ratio's multiples are spread evenly, wherever the time runs out
    order = np.argsort((np.arange(len(samples)) * 0.6180339887498949) % 1.0)
    deadline = None if time_limit is None else time.monotonic() + time_limit
    checked = 0
    with ThreadPoolExecutor(max_workers=4) as pool:
        for start in range(0, len(order), 64):
            if deadline is not None and time.monotonic() > deadline:
                break
            chunk = order[start : start + 64]
            list(pool.map(lambda i: check_one(samples[i]), chunk))
            checked += len(chunk)
    return checked


def read_image(path: str, what: str, backend_args: Any = None, **how: str) -> np.ndarray:
    """Read an image.

    Args:
        path: Its file.
        what: What an error calls it.
        backend_args: Where it is kept, as in mmengine's data sets.
        how: Arguments of mmcv.imfrombytes.

    Raises:
        UnreadableError: It cannot be read.
    """
    try:
        array = mmcv.imfrombytes(get(path, backend_args=backend_args), **how)
    except Exception as error:
        raise UnreadableError(f"the {what} '{path}' cannot be read: {error}") from error
    if array is None:
        raise UnreadableError(f"the {what} '{path}' cannot be read: it is no image, or cut off")
    return array
