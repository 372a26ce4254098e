"""Which learning rate to try next, from what the ones so far gave."""

import math
from collections.abc import Mapping, Sequence

#: where a search begins, for each method's name before the colon: three rates, half a decade apart
STARTS: Mapping[str, tuple[float, float, float]] = {
    "full": (1e-5, 3e-5, 1e-4),
    "head": (3e-4, 1e-3, 3e-3),
    "wo": (3e-5, 1e-4, 3e-4),
    "lora": (1e-4, 3e-4, 1e-3),
    "apla": (1e-4, 3e-4, 1e-3),
    "norm": (3e-4, 1e-3, 3e-3),
    "bitfit": (3e-4, 1e-3, 3e-3),
}
ANY_START = (3e-5, 3e-4, 3e-3)  #: of a method that is not known


def start_of(method: str) -> tuple[float, float, float]:
    """The rates that a method's search begins with.

    Args:
        method: As on the command line, such as ``'apla:r=64'``.
    """
    return STARTS.get(method.partition(":")[0], ANY_START)


def next_rates(scores: Mapping[float, float | None], start: Sequence[float], trials: int) -> list[float]:
    """The rates to try next: the start's, then wider ones while the best is at the edge, then finer ones.

    It depends on the scores alone, so that a search that was cut off goes on as it would have.

    Args:
        scores: Rate to score, the higher the better; None for a trial that failed.
        start: The rates to begin with; one alone is the rate, without a trial.
        trials: How many rates are tried in all.

    Returns:
        Rates that can be tried at once; none when the search is over.

    Raises:
        ValueError: There are fewer trials than rates to begin with, or rates are not positive and distinct.
    """
    start = sorted(start)
    if not start or len(set(start)) != len(start) or start[0] <= 0:
        raise ValueError(f"learning rates to begin with must be distinct and positive, and are {start}")
    if len(start) == 1:
        return []
    if trials < len(start):
        raise ValueError(f"{trials} trials are fewer than the {len(start)} learning rates to begin with")
    if missing := [rate for rate in start if rate not in scores]:
        return missing
    if len(scores) >= trials:
        return []
    tried = sorted(scores)
    best = best_rate(scores)
    if best is None:
        return _new(tried[0] ** 2 / tried[1], scores)  # all diverged
    place = tried.index(best)
    step = start[-1] / start[-2], start[1] / start[0]
    if place == len(tried) - 1:
        return _new(best * step[0], scores)
    if place == 0:
        return _new(best / step[1], scores)
    # between the best and the better of its neighbours, unless that gap is the smaller one
    below, above = tried[place - 1], tried[place + 1]
    gaps = math.log(best / below), math.log(above / best)
    even = math.isclose(*gaps, rel_tol=0.2)
    down = _score(scores[below]) > _score(scores[above]) if even else gaps[0] > gaps[1]
    return _new(math.sqrt(best * (below if down else above)), scores)


def best_rate(scores: Mapping[float, float | None]) -> float | None:
    """The rate with the highest score, the lower one of two; None if all failed."""
    found = [rate for rate in sorted(scores) if _score(scores[rate]) > -math.inf]
    return max(found, key=lambda rate: _score(scores[rate])) if found else None


def at_edge(scores: Mapping[float, float | None]) -> bool:
    """Whether the best rate is the lowest or the highest that was tried, so that a better one may lie outside."""
    best = best_rate(scores)
    return best is not None and best in (min(scores), max(scores))


def _score(score: float | None) -> float:
    return -math.inf if score is None or math.isnan(score) else score


def _new(rate: float, scores: Mapping[float, float | None]) -> list[float]:
    """A rate that has not been tried, of two digits where they tell it from the others."""
    rounded = float(f"{rate:.1e}")
    return [rate if rounded in scores else rounded]
