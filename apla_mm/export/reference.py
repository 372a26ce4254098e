"""What the plain model predicts by the config's own pipeline, which exported files are compared with."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, cast

import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import Compose
from mmengine.registry import init_default_scope
from torch import nn

from .images import test_pipeline


class Comparison(NamedTuple):
    """How far results are from the plain model's.

    Attributes:
        difference: The largest, of scores relative to the largest score of the plain model (of detectors: of scores,
            and of boxes relative to the image's longer side).
        equal: The share of equal labels; of detectors, of boxes that have an equal one.
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
        scores, labels and masks of as many objects as there are.
    """
    init_default_scope(cfg.get("default_scope") or "mmengine")
    steps = [step for step in test_pipeline(cfg) if "LoadAnnotations" not in str(step["type"])]
    data = Compose(steps)(dict(img_path=str(path), img_id=0))
    batch = {key: [value] for key, value in data.items()}
    with torch.no_grad():
        sample = cast(Any, model).test_step(batch)[0]
    if "pred_sem_seg" in sample:
        return dict(labels=sample.pred_sem_seg.data[0].numpy(), scores=sample.seg_logits.data.max(0).values.numpy())
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
    each = [
        _compare_objects(a, b) if "boxes" in a else _compare_pixels(a, b) for a, b in zip(expected, given, strict=True)
    ]
    return Comparison(max(d for d, _ in each), float(np.mean([e for _, e in each])), len(each))


def _compare_pixels(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, float]:
    if a["labels"].shape != b["labels"].shape:
        raise ValueError(f"labels are {b['labels'].shape}, and {a['labels'].shape} of the plain model")
    largest = max(float(np.abs(a["scores"]).max()), 1e-12)
    difference = float(np.abs(a["scores"] - b["scores"]).max()) / largest
    return _finite(difference), float((a["labels"] == b["labels"]).mean())


def _compare_objects(a: Mapping[str, np.ndarray], b: Mapping[str, np.ndarray]) -> tuple[float, float]:
    """Each object is compared with the nearest one of its label that is left."""
    left = list(np.flatnonzero(b["labels"] >= 0))
    longest = max(float(np.abs(a["boxes"]).max(initial=1)), 1.0)
    longest = max(*a["masks"].shape[1:], 1) if a.get("masks") is not None and a["masks"].ndim == 3 else longest
    worst, same = 0.0, 0
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
    return _finite(worst), same / count if count else 1.0


def _finite(value: float) -> float:
    return value if np.isfinite(value) else float("inf")


def one_of_batch(results: Mapping[str, Any], index: int) -> dict[str, np.ndarray]:
    """An exported model's results of one image of a batch."""
    return {name: np.asarray(value[index]) for name, value in results.items()}
