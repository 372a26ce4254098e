"""Parts of a data set."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apla_mm.compare.trials.splits import draw_fraction, hold_out

NAMES = [f"image_{i:03}.jpg" for i in range(100)]


@given(seed=st.integers(0, 10), small=st.floats(0.01, 1), large=st.floats(0.01, 1))
def test_smaller_fractions_lie_within_larger_ones(seed: int, small: float, large: float) -> None:
    small, large = sorted((small, large))
    a, b = draw_fraction(NAMES, small, seed), draw_fraction(NAMES, large, seed)
    assert set(a) <= set(b) and len(a) == max(1, round(100 * small)) and a == sorted(a)


def test_what_is_drawn_depends_on_names_not_on_their_order() -> None:
    backwards = NAMES[::-1]
    drawn = {NAMES[i] for i in draw_fraction(NAMES, 0.3, 1)}
    assert drawn == {backwards[i] for i in draw_fraction(backwards, 0.3, 1)}
    assert drawn != {NAMES[i] for i in draw_fraction(NAMES, 0.3, 2)}


@given(count=st.integers(2, 100), share=st.floats(0.01, 0.99), seed=st.integers(0, 5))
def test_both_parts_of_a_split_are_there_and_share_nothing(count: int, share: float, seed: int) -> None:
    chosen = draw_fraction(NAMES, count / 100, seed)
    split = hold_out(NAMES, chosen, share, seed)
    assert split.train and split.held_out and sorted((*split.train, *split.held_out)) == chosen


def test_what_cannot_be_drawn_is_an_error() -> None:
    with pytest.raises(ValueError, match="use a number above 0"):
        draw_fraction(NAMES, 1.5, 0)
    with pytest.raises(ValueError, match="no item"):
        draw_fraction([], 0.5, 0)
    with pytest.raises(ValueError, match="have one name"):
        draw_fraction(["a", "a"], 0.5, 0)
    with pytest.raises(ValueError, match="larger fraction"):
        hold_out(NAMES, [3], 0.2, 0)
