import random

import numpy as np
import pytest
import torch

from apla_mm.runs.seeding import generators_kept, seed_all


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(torch.rand(()))]


def test_generators_are_as_before_behind_it() -> None:
    seed_all(1)
    expected = draw() + draw()
    seed_all(1)
    found = draw()
    with generators_kept():
        seed_all(2)
        assert draw() != expected[3:]
    with pytest.raises(ZeroDivisionError), generators_kept():
        draw()
        raise ZeroDivisionError
    assert found + draw() == expected
