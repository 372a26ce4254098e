"""The search for a learning rate, on curves whose best is known."""

import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apla_mm.compare.trials.search import at_edge, best_rate, next_rates, start_of


def search(curve: Callable[[float], float | None], start: tuple[float, ...], trials: int) -> dict[float, float | None]:
    scores: dict[float, float | None] = {}
    while rates := next_rates(scores, start, trials):
        scores |= {rate: curve(rate) for rate in rates}
    return scores


def bump(best: float) -> Callable[[float], float]:
    return lambda rate: -abs(math.log10(rate / best))


@given(best=st.floats(-7, 0), trials=st.integers(3, 12))
def test_all_trials_are_used_and_rates_are_distinct(best: float, trials: int) -> None:
    scores = search(bump(10**best), start_of("lora:r=8"), trials)
    assert len(scores) == trials and all(rate > 0 for rate in scores)


@given(best=st.floats(-6.4, -0.6))
def test_the_best_is_found_though_it_lies_outside_the_start(best: float) -> None:
    scores = search(bump(10**best), (1e-4, 3e-4, 1e-3), 12)
    found = best_rate(scores)
    assert found is not None and not at_edge(scores)
    assert abs(math.log10(found) - best) < 0.3  # within a factor of two


def test_a_start_in_the_middle_is_refined() -> None:
    assert list(search(bump(2.4e-4), (1e-4, 3e-4, 1e-3), 6)) == [1e-4, 3e-4, 1e-3, 1.7e-4, 5.5e-4, 2.3e-4]


def test_rates_that_diverge_are_left_below() -> None:
    scores = search(lambda rate: None if rate > 1e-5 else 1.0, (1e-4, 3e-4, 1e-3), 9)
    found = best_rate(scores)
    assert found is not None and found <= 1e-5
    assert best_rate({1e-3: None, 1e-4: math.nan}) is None


def test_one_rate_is_not_searched() -> None:
    assert next_rates({}, (1e-3,), 5) == []


def test_of_equal_scores_the_lower_rate_is_taken_and_edges_are_told() -> None:
    assert best_rate({1e-3: 1.0, 1e-4: 1.0, 1e-5: 0.5}) == 1e-4
    assert at_edge({1e-3: 1.0, 1e-4: 0.5}) and not at_edge({1e-3: 0.0, 1e-4: 1.0, 1e-5: 0.0})


@pytest.mark.parametrize(("start", "trials"), [((), 5), ((1e-3, 1e-3), 5), ((0.0, 1e-3), 5), ((1e-4, 1e-3), 1)])
def test_a_start_that_is_none_is_refused(start: tuple[float, ...], trials: int) -> None:
    with pytest.raises(ValueError, match="learning rates to begin with"):
        next_rates({}, start, trials)
