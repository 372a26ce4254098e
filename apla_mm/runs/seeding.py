"""Random numbers that follow from what they are for, not from what was drawn before."""

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank

from ..internals import ranks_differ


def seed_all(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch, on every device.

    Args:
        key: Non-negative integers. Of two keys of equal length, any difference gives unrelated random numbers.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))


def seed_of_rank(runner: Any) -> int:
    """The seed of this process in a run."""
    return runner.seed - (get_rank() if ranks_differ(runner) else 0)


@contextmanager
def generators_kept() -> Iterator[None]:
    """Within it random numbers may be drawn and seeded; behind it the generators of :func:`seed_all` are as before."""
    python, arrays = random.getstate(), np.random.get_state()
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)
