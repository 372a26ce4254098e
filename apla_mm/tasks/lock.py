"""Blocks of one model exclude one another."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from weakref import WeakKeyDictionary

from torch import nn


class _Lock:
    def __init__(self) -> None:
        self.lock = threading.Lock()  # unlike an RLock's, its block may be left in another thread
        self.owner: threading.Thread | None = None
        self.inside = ""


_locks: WeakKeyDictionary[nn.Module, _Lock] = WeakKeyDictionary()
_making = threading.Lock()


@contextmanager
def exclusive(model: nn.Module, what: str) -> Iterator[None]:
    """A block of a model that waits until other threads have left theirs.

    Args:
        model: The model; its one lock is known by it, not by the modules inside.
        what: The block is of, for the error.

    Raises:
        RuntimeError: One of this thread is open.
    """
    with _making:
        one = _locks.setdefault(model, _Lock())
    thread = threading.current_thread()
    if one.owner is thread:
        raise RuntimeError(f"{what}: this thread is in the block of {one.inside} already; leave that first")
    with one.lock:
        one.owner, one.inside = thread, what
        try:
            yield
        finally:
            one.owner = None
