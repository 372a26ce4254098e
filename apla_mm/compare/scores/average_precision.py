"""COCO's average precision of test images that are drawn again."""

import contextlib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .bootstrap import Array, ScoreOf


@dataclass(frozen=True)
class _Category:
    """Detections of a category in all images, the best scores first.

    Attributes:
        image: (D,), each one's image.
        hit: (T, D), whether it is right, at each of T thresholds of overlap.
        miss: (T, D), whether it is wrong; what hits a crowd or lies outside of the sizes is neither.
        present: (N,), how many objects each image has.
    """

    image: NDArray[np.int64]
    hit: NDArray[np.bool_]
    miss: NDArray[np.bool_]
    present: Array


def average_precision(
    predictions: Path, annotations: Path, kind: str, classes: Sequence[str]
) -> tuple[list[str], ScoreOf]:
    """A run's AP, averaged over overlaps from 0.5 to 0.95, of all sizes, with 100 detections an image.

    A category of which the drawn images have no object does not count, as in pycocotools. An image that is drawn twice
    counts as two; of its detections with equal scores the copies stay together.

    Args:
        predictions: The JSON file that mmdet's CocoMetric writes by its ``outfile_prefix``.
        annotations: The annotation file.
        kind: ``'bbox'`` or ``'segm'``.
        classes: The categories that count, as in mmdet.

    Returns:
        The images' names, and the score, from 0 to 1.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        detections = json.loads(predictions.read_text())
        found: Any = COCOeval(truth, truth.loadRes(detections) if detections else COCO(), kind)
        found.params.catIds = [category["id"] for category in truth.cats.values() if category["name"] in classes]
        found.evaluate()
    categories = list(_categories(found))
    recalls = found.params.recThrs
    images = [truth.imgs[image]["file_name"] for image in found.params.imgIds]

    def score(weights: Array) -> Array:
        return np.array([_mean_precision(categories, one, recalls) for one in weights])

    return images, score


def _categories(found: Any) -> Iterator[_Category]:
    images, areas = len(found.params.imgIds), len(found.params.areaRng)
    for first in range(0, len(found.evalImgs), areas * images):
        results = found.evalImgs[first : first + images]  # of all sizes, which come first
        known = [(i, result) for i, result in enumerate(results) if result is not None]
        present = np.zeros(images)
        for i, result in known:
            present[i] = np.count_nonzero(np.asarray(result["gtIgnore"]) == 0)
        if not known:
            continue
        scores = np.concatenate([result["dtScores"] for _, result in known])
        order = np.argsort(-scores, kind="mergesort")  # as pycocotools sorts
        matched = np.concatenate([result["dtMatches"] for _, result in known], 1)[:, order] != 0
        ignored = np.concatenate([result["dtIgnore"] for _, result in known], 1)[:, order] != 0
        image = np.concatenate([np.full(len(result["dtScores"]), i) for i, result in known])[order]
        yield _Category(image.astype(np.int64), matched & ~ignored, ~matched & ~ignored, present)


def _mean_precision(categories: list[_Category], weights: Array, recalls: Array) -> float:
    """Over categories and overlaps, for images that count so often each."""
    values = []
    for category in categories:
        objects = float(weights @ category.present)
        if not objects:
            continue
        each = weights[category.image]
        hits, misses = np.cumsum(category.hit * each, 1), np.cumsum(category.miss * each, 1)
        precision = hits / np.maximum(hits + misses, np.spacing(1))
        precision = np.maximum.accumulate(precision[:, ::-1], 1)[:, ::-1]
        for recall, envelope in zip(hits / objects, precision, strict=True):
            place = np.searchsorted(recall, recalls, side="left")
            values.append(np.append(envelope, 0.0)[np.minimum(place, len(envelope))].mean())
    return float(np.mean(values)) if values else float("nan")
