"""Blocks of models that share modules exclude one another."""

import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import count
from weakref import WeakKeyDictionary

from torch import nn


class Guard:
    """Of modules that one block at a time may have.

    Attributes:
        number: Its place in the order that all take guards in.
        owner: The thread in the block.
        inside: What the block is of.
        writes: How often blocks wrote to the modules' tensors, by ``id``.
    """

    _numbers = count()

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self.lock = threading.Lock()  # unlike an RLock's, its block may be left in another thread
        self.owner: threading.Thread | None = None
        self.inside = ""
        self.writes: Counter[int] = Counter()


_guards: WeakKeyDictionary[nn.Module, Guard] = WeakKeyDictionary()
_guarding = threading.Lock()


def guard_of(module: nn.Module) -> Guard:
    """The guard of a module that has one."""
    return _guards[module]


def guards_of(model: nn.Module) -> list[Guard]:
    """The guards of a model's modules, in the order to take them in; those that have none get one."""
    modules = list(model.modules())
    with _guarding:
        found = {guard for module in modules if (guard := _guards.get(module)) is not None}
        guards = sorted(found, key=lambda guard: guard.number) or [Guard()]
        for module in modules:
            _guards.setdefault(module, guards[0])
    return guards


@contextmanager
def exclusive(guards: Sequence[Guard], what: str) -> Iterator[None]:
    """A block that waits for those of other threads.

    Raises:
        RuntimeError: One of this thread is open.
    """
    thread = threading.current_thread()
    for guard in guards:
        if guard.owner is thread:
            raise RuntimeError(f"{what}: this thread is in the block of {guard.inside} already; leave that first")
    with ExitStack() as locks:
        for guard in guards:
            locks.enter_context(guard.lock)
            guard.owner, guard.inside = thread, what
            locks.callback(setattr, guard, "owner", None)
        yield
