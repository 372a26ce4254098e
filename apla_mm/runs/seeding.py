"""Random numbers that follow from what they are for, not from what was drawn before."""

import random

import numpy as np
import torch


def seed_all(*key: int) -> None:
    """Seed the generators of Python, NumPy and torch, on every device.

    Args:
        key: Non-negative integers. Of two keys of equal length, any difference gives unrelated random numbers.
    """
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(words.tobytes())
    np.random.seed(words)
    torch.manual_seed(int(words[0]) << 32 | int(words[1]))
