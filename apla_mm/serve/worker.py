"""The one thread that owns the models: images of a task wait, and are predicted in batches."""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..api.prediction import Prediction
from ..api.predictor import Prepared
from .metrics import Metrics
from .requests.limits import Limits
from .task import Task

T = TypeVar("T")
_log = logging.getLogger("apla_mm.serve")


class UnfitImageError(ValueError):
    """An image cannot be prepared for a task."""


@dataclass(eq=False)
class _Job:
    task: Task
    pixels: np.ndarray
    future: "Future[Prediction]" = field(default_factory=Future)
    since: float = field(default_factory=time.monotonic)


class Worker:
    """Predicts in a thread of its own. Images of one task that wait together are one batch; the oldest goes first.

    Args:
        limits: How many images a batch may have, and how long it waits for more.
        metrics: Where batches are counted.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits, self._metrics = limits, metrics
        self._jobs: deque[_Job] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._changed = threading.Condition()
        self._stops = False
        self._last: Task | None = None
        self._thread = threading.Thread(target=self._run, name="models", daemon=True)
        self._thread.start()

    def submit(self, task: Task, pixels: np.ndarray) -> "Future[Prediction]":
        """Have an image predicted; the future may be cancelled until its batch begins.

        Args:
            task: By what.
            pixels: (H, W, 3) uint8, RGB.

        Returns:
            What was found; or :class:`UnfitImageError`, or whatever the model raised.
        """
        job = _Job(task, pixels)
        with self._changed:
            self._jobs.append(job)
            self._changed.notify()
        return job.future

    def call(self, function: Callable[[], T]) -> "Future[T]":
        """Have a function called between batches, when nothing is switched in; before all images that wait."""
        future: Future[T] = Future()
        with self._changed:
            self._calls.append((function, future))
            self._changed.notify()
        return future

    @property
    def waiting(self) -> int:
        """How many images wait."""
        return len(self._jobs)

    @property
    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def stop(self, timeout: float) -> bool:
        """End the thread once nothing waits; gives whether it has ended within so many seconds."""
        with self._changed:
            self._stops = True
            self._changed.notify()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._calls and not self._jobs and not self._stops:
                    self._changed.wait()
                call = self._calls.popleft() if self._calls else None
                batch = [] if call else self._next_batch()
                if self._stops and call is None and not batch and not self._jobs:
                    return
            if call is not None:
                _call(*call)
            elif batch:
                self._predict([job for job in batch if job.future.set_running_or_notify_cancel()])

    def _next_batch(self) -> list[_Job]:
        """Take the oldest image's batch once it is full or has waited; the lock is held, and let go while waiting."""
        while self._jobs and not self._calls:
            first = self._jobs[0]
            if first.future.cancelled():
                self._jobs.popleft()
                continue
            batch: list[_Job] = []
            pixels = 0
            for job in self._jobs:
                if job.task is not first.task or job.future.cancelled():
                    continue
                pixels += job.pixels.shape[0] * job.pixels.shape[1]
                full = len(batch) == self._limits.max_batch or (batch and pixels > self._limits.max_pixels)
                if full:
                    break
                batch.append(job)
            else:
                full = len(batch) == self._limits.max_batch
            left = first.since + self._limits.max_wait - time.monotonic()
            if full or left <= 0 or self._stops:
                taken = set(map(id, batch))
                self._jobs = deque(job for job in self._jobs if id(job) not in taken)
                return batch
            self._changed.wait(left)
        return []

    def _predict(self, jobs: list[_Job]) -> None:
        prepared: list[tuple[_Job, Prepared]] = []
        for job in jobs:
            try:
                prepared.append((job, job.task.prepare(job.pixels)))
            except Exception as error:  # transforms fail in any way
                reason = UnfitImageError(f"{type(error).__name__}: {error}")
                job.future.set_exception(reason)
        if not prepared:
            return
        task = prepared[0][0].task
        if self._last is not task:
            self._metrics.switches.inc()
            self._last = task
        begin = time.monotonic()
        try:
            found = task.predict([image for _, image in prepared])
        except Exception as error:
            if len(prepared) > 1:  # one of them need not fail the others
                for job, _ in prepared:
                    self._predict([job])
                return
            _log.exception("task %s: the model failed", task.name)
            prepared[0][0].future.set_exception(error)
            return
        self._metrics.batch_images.labels(task.name).observe(len(prepared))
        self._metrics.batch_seconds.labels(task.name).observe(time.monotonic() - begin)
        for (job, _), prediction in zip(prepared, found, strict=True):
            job.future.set_result(prediction)


def _call(function: Callable[[], Any], future: "Future[Any]") -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = function()
    except Exception as error:
        future.set_exception(error)
    else:
        future.set_result(result)
