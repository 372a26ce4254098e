"""What the plain model predicts by the config's own pipeline, which exported files are compared with."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import nn

from .modules.images import test_pipeline


class Comparison(NamedTuple):
    """How far results are from the plain model's.

    Attributes:
        difference: The largest, of scores relative to the largest score of the plain model (of detectors: of scores,
            and of boxes relative to the image's longer side; of panoptic maps: the share of pixels that lie in another
            segment).
        equal: The share of equal labels in all images; of detectors, of boxes that have an equal one; of panoptic maps,
            of segments that have an equal one.
        images: How many there were.
    """

    difference: float
    equal: float
    images: int

    def __str__(self) -> str:
        return f"largest difference {self.difference:.2g}, {100 * self.equal:.3f}% equal, {self.images} images"


#: boxes further apart, in shares of the image's longer side, or with scores further apart, are not the same
_SAME = 0.02


def predict_plain(cfg: Config, model: nn.Module, path: Path) -> dict[str, np.ndarray]:
    """Test the plain model on an image file, by mmseg's or mmdet's own code.

    Args:
        cfg: The config.
        model: Its model, with everything as it was built.
        path: The image.

    Returns:
        What the exported module would give of this image, without the batch: labels and scores of pixels; or boxes,
        scores, labels and masks of as many objects as there are; or segments.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    steps = [step for step in test_pipeline(cfg) if "LoadAnnotations" not in str(step["type"])]
    data = Compose(steps)(dict(img_path=str(path), img_id=0))
    batch = {key: [value] for key, value in data.items()}
    with torch.no_grad():
        sample = cast(Any, model).test_step(batch)[0]
    if "pred_sem_seg" in sample:
        return dict(labels=sample.pred_sem_seg.data[0].numpy(), scores=sample.seg_logits.data.max(0).values.numpy())
    if "pred_panoptic_seg" in sample:
        return dict(segments=sample.pred_panoptic_seg.sem_seg[0].numpy())
    found = sample.pred_instances
    names = dict(bboxes="boxes", scores="scores", labels="labels", masks="masks")
    return {ours: np.asarray(found[theirs]) for theirs, ours in names.items() if theirs in found}


def read_image(path: Path) -> np.ndarray:
    """An image file as exported models take it, uint8 (3, H, W), red first."""
    return np.ascontiguousarray(mmcv.imread(str(path), channel_order="rgb").transpose(2, 0, 1))


def compare(expected: Sequence[Mapping[str, np.ndarray]], given: Sequence[Mapping[str, np.ndarray]]) -> Comparison:
    """Compare results of images.

    Args:
        expected: What :func:`predict_plain` gives of each.
        given: An exported model's, one image each, without the batch.
    """
    each = [_kind(a)(a, b) for a, b in zip(expected, given, strict=True)]
    same, count = (sum(one[i] for one in each) for i in (1, 2))
    difference = float(np.max([one[0] for one in each]))
    return Comparison(
        difference if np.isfinite(difference) else float("inf"), same / count if count else 1.0, len(each)
    )


def _kind(results: Mapping[str, np.ndarray]) -> Callable[..., tuple[float, int, int]]:
    """Gives of two results the largest difference, and how many are equal of how many."""
    if "segments" in results:
        return _compare_segments
    return _compare_objects if "boxes" in results else _compare_pixels


def _compare_pixels(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, int, int]:
    if a["labels"].shape != b["labels"].shape:
        raise ValueError(f"labels are {b['labels'].shape}, and {a['labels'].shape} of the plain model")
    largest = max(float(np.abs(a["scores"]).max()), 1e-12)
    difference = float(np.abs(a["scores"] - b["scores"]).max()) / largest
    return difference, int((a["labels"] == b["labels"]).sum()), a["labels"].size


def _compare_segments(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, int, int]:
    """Segments of one class that overlap by more than half are compared; numbers of objects may differ."""
    from mmdet.structures import INSTANCE_OFFSET  # segmentors do without mmdet

    a_map, b_map = a["segments"], b["segments"]
    if a_map.shape != b_map.shape:
        raise ValueError(f"segments are {b_map.shape}, and {a_map.shape} of the plain model")
    pairs, counts = np.unique(np.stack([a_map.ravel(), b_map.ravel()]), axis=1, return_counts=True)
    sizes = [dict(zip(*np.unique(one, return_counts=True), strict=True)) for one in (a_map, b_map)]
    same, covered = 0, 0
    for (first, second), count in zip(pairs.T, counts, strict=True):
        union = sizes[0][first] + sizes[1][second] - count
        # two that overlap by more than half have no other such partner
        if first % INSTANCE_OFFSET == second % INSTANCE_OFFSET and count / union > 0.5:
            covered += count
            same += count / union >= 1 - _SAME
    return 1 - covered / a_map.size, same, max(len(sizes[0]), len(sizes[1]))


def _compare_objects(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, int, int]:
    """Each object is compared with the nearest one of its label that is left."""
    left = list(np.flatnonzero(b["labels"] >= 0))
    longest = max(float(np.abs(a["boxes"]).max(initial=1)), 1.0)
    longest = max(*a["masks"].shape[1:], 1) if a.get("masks") is not None and a["masks"].ndim == 3 else longest
    finite = all(np.isfinite(b[name][left]).all() for name in ("boxes", "scores"))
    worst, same = 0.0 if finite else float("inf"), 0
    count = max(len(a["labels"]), len(left))
    for i in range(len(a["labels"])):
        best, at = np.inf, -1
        for j in left:
            if a["labels"][i] == b["labels"][j]:
                apart = float(np.abs(a["boxes"][i] - b["boxes"][j]).max()) / longest
                apart = max(apart, float(abs(a["scores"][i] - b["scores"][j])))
                if apart < best:
                    best, at = apart, int(j)
        if best > _SAME:
            continue
        left.remove(at)
        if "masks" in a:
            union = np.logical_or(a["masks"][i], b["masks"][at]).sum()
            if union and np.logical_and(a["masks"][i], b["masks"][at]).sum() / union < 1 - _SAME:
                continue
        same += 1
        worst = max(worst, best)
    return worst, same, count


def one_of_batch(results: Mapping[str, Any], index: int) -> dict[str, np.ndarray]:
    """An exported model's results of one image of a batch."""
    return {name: np.asarray(value[index]) for name, value in results.items()}
