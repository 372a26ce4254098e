"""How sure a difference of two methods is, given these test images and these runs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: How often each of N test images is drawn (R, N) to a run's score for each of the R draws (R,)
ScoreOf = Callable[[Array], Array]


@dataclass(frozen=True)
class Difference:
    """Of two methods' mean scores: the first one's less the second one's.

    Attributes:
        mean: On the test images as they are.
        low: Lower end of the interval that holds 95 % of the draws.
        high: Its upper end.
    """

    mean: float
    low: float
    high: float

    @property
    def decided(self) -> bool:
        """Whether the interval is on one side of zero."""
        return self.low > 0 or self.high < 0


def difference(
    first: Sequence[ScoreOf], second: Sequence[ScoreOf], images: int, draws: int = 2000, seed: int = 0
) -> Difference:
    """Compare two methods by a bootstrap that is paired over test images (Efron and Tibshirani, 1993).

    Each draw takes as many test images as there are, with replacement, the same ones for all runs of both methods, and
    as many runs of each method as it has. So both the choice of the images and that of the seeds are in the interval.

    Args:
        first: Of each run of the first method.
        second: Of the second.
        images: N.
        draws: R.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(images, np.full(images, 1 / images), size=draws).astype(np.float64)
    as_they_are = np.ones((1, images))
    means, drawn = [], []
    for runs in (first, second):
        means.append(float(np.mean([run(as_they_are)[0] for run in runs])))
        scores = np.stack([run(weights) for run in runs])  # (runs, R)
        chosen = generator.integers(len(runs), size=(len(runs), draws))
        drawn.append(np.take_along_axis(scores, chosen, 0).mean(0))
    low, high = np.quantile(drawn[0] - drawn[1], [0.025, 0.975])
    return Difference(means[0] - means[1], float(low), float(high))


def accuracy(file: Path) -> tuple[list[str], ScoreOf]:
    """A run's accuracy in percent from what :class:`~.image_hits.ImageHits` wrote.

    Returns:
        The images, and the score.
    """
    with np.load(file) as known:
        images, hits = known["images"].tolist(), known["hits"].astype(np.float64)
    return images, lambda weights: 100 * (weights @ hits) / weights.sum(1)


def mean_iou(file: Path) -> tuple[list[str], ScoreOf]:
    """A run's mean IoU in percent from what :class:`~.image_areas.ImageAreas` wrote.

    A class that none of the drawn images has, in prediction or label, does not count, as in mmseg.

    Returns:
        The images, and the score.
    """
    with np.load(file) as areas:
        images, intersect, union = areas["images"].tolist(), areas["intersect"], areas["union"]

    def score(weights: Array) -> Array:
        with np.errstate(invalid="ignore"):
            iou = (weights @ intersect.astype(np.float64)) / (weights @ union.astype(np.float64))
        found: Array = 100 * np.nanmean(iou, 1)
        return found

    return images, score
