"""Order, batches and cancelled images of the worker."""

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from typing import Any

import numpy as np
import pytest

from apla_mm.serve.metrics import Metrics
from apla_mm.serve.requests.limits import Limits
from apla_mm.serve.worker import UnfitImageError, Worker

PIXELS = np.zeros((10, 10, 3), np.uint8)


class Numbers:
    """In place of a task: doubles an image's first value, of which 13 cannot be prepared and 99 fails."""

    def __init__(self, name: str, batches: list[tuple[str, list[int]]]) -> None:
        self.name, self._batches = name, batches

    def prepare(self, pixels: np.ndarray) -> int:
        if pixels[0, 0, 0] == 13:
            raise ValueError("13 is no size")
        return int(pixels[0, 0, 0])

    def predict(self, images: Sequence[int]) -> list[int]:
        if 99 in images:
            raise RuntimeError("99")
        self._batches.append((self.name, list(images)))
        return [2 * image for image in images]


def image(value: int) -> np.ndarray:
    return np.full((10, 10, 3), value, np.uint8)


@pytest.fixture
def held() -> Iterator[tuple[Worker, threading.Event]]:
    """A worker that is held up until an event, so that images wait."""
    worker, event = Worker(Limits(max_batch=3, max_pixels=1000, max_wait=0.001), Metrics()), threading.Event()
    worker.call(lambda: event.wait(30))
    yield worker, event
    event.set()
    assert worker.stop(30)


def test_the_oldest_goes_first_with_others_of_its_task(held: tuple[Worker, threading.Event]) -> None:
    worker, event = held
    batches: list[Any] = []
    a, b = (Numbers(name, batches) for name in "ab")
    futures = [worker.submit(task, image(i)) for i, task in enumerate([a, b, a, b, a, a, b])]
    event.set()
    assert [future.result(30) for future in futures] == [0, 2, 4, 6, 8, 10, 12]
    assert batches == [("a", [0, 2, 4]), ("b", [1, 3, 6]), ("a", [5])]


def test_what_is_cancelled_is_not_computed_and_what_fails_fails_alone(held: tuple[Worker, threading.Event]) -> None:
    worker, event = held
    batches: list[Any] = []
    task = Numbers("a", batches)
    futures = [worker.submit(task, image(i)) for i in (1, 99, 2, 13, 3, 4)]
    assert futures[2].cancel()
    event.set()
    assert [futures[i].result(30) for i in (0, 4, 5)] == [2, 6, 8]
    with pytest.raises(RuntimeError, match="99"):
        futures[1].result(30)
    with pytest.raises(UnfitImageError, match="ValueError: 13 is no size"):
        futures[3].result(30)
    with pytest.raises(CancelledError):
        futures[2].result(30)
    assert sorted(value for _, batch in batches for value in batch) == [1, 3, 4]


def test_a_batch_has_no_more_pixels_than_an_image_may_have(held: tuple[Worker, threading.Event]) -> None:
    worker, event = held
    batches: list[Any] = []
    task = Numbers("a", batches)
    large = np.zeros((20, 40, 3), np.uint8)  # two of them have over 1000 pixels
    futures = [worker.submit(task, large) for _ in range(2)] + [worker.submit(task, PIXELS)]
    event.set()
    assert [future.result(30) for future in futures] == [0, 0, 0]
    assert [len(batch) for _, batch in batches] == [1, 2]
