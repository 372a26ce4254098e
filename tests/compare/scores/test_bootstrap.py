"""Intervals of differences, against draws whose answer is known."""

import numpy as np
import pytest

from apla_mm.compare.scores.bootstrap import Array, ScoreOf, difference


def mean_of(values: Array) -> ScoreOf:
    return lambda weights: weights @ values / len(values)


def test_a_clear_difference_is_decided_and_none_is_not() -> None:
    generator = np.random.default_rng(0)
    hard = generator.normal(50, 20, 100)  # images differ more than methods do
    first = [mean_of(hard + 3 + generator.normal(0, 1, 100)) for _ in range(3)]
    second = [mean_of(hard + generator.normal(0, 1, 100)) for _ in range(3)]
    found = difference(first, second, 100)
    assert found.low < found.mean < found.high and found.decided and found.mean == pytest.approx(3, abs=0.5)
    assert found == difference(first, second, 100)
    again = difference(second, second, 100)
    assert again.mean == 0 and not again.decided


def test_the_interval_has_the_width_of_theory() -> None:
    values = np.random.default_rng(1).normal(0, 1, 400)
    found = difference([mean_of(values)], [mean_of(np.zeros(400))], 400)
    assert found.high - found.low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.1)


def test_spread_of_runs_is_in_the_interval() -> None:
    flat = np.ones(50)
    runs = [mean_of(flat * value) for value in (48.0, 50.0, 52.0)]
    found = difference(runs, [mean_of(flat * 49.5)], 50)
    assert found.low < 0 < found.high and not found.decided
