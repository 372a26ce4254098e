"""Which test images a classifier has right, so that test images can be drawn again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric


class ImageHits(BaseMetric):
    """Writes of each image whether its class was predicted to a file, and scores nothing.

    The file is numpy's ``.npz``: ``images``, N paths, sorted; ``hits`` (N,), bool.

    Args:
        file: Where to write to.
    """

    def __init__(self, file: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file = file

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Compare a batch's classes."""
        for sample in data_samples:
            hit = int(sample["pred_label"]) == int(sample["gt_label"])
            self.results.append((str(sample["img_path"]), hit))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Write the file."""
        images, hits = zip(*sorted(results), strict=True)
        np.savez_compressed(self.file, images=np.array(images), hits=np.array(hits))
        return {}
