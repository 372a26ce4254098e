"""What each test image adds to the IoU of each class, so that test images can be drawn again."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric


class ImageAreas(BaseMetric):
    """Writes intersections and unions of each image to a file, and scores nothing.

    The file is numpy's ``.npz``: ``images``, N paths, sorted; ``labels``, their label maps'; ``intersect`` and
    ``union`` (N, C), in pixels.

    Args:
        file: Where to write to.
        ignore_index: Labels that do not count.
    """

    def __init__(self, file: str, ignore_index: int = 255, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.file, self.ignore_index = file, ignore_index

    def process(self, data_batch: Any, data_samples: Sequence[Mapping[str, Any]]) -> None:
        """Count the pixels of a batch."""
        from mmseg.evaluation.metrics import IoUMetric  # here, so that this is registered where there is no mmseg

        classes = len(self.dataset_meta["classes"])
        for sample in data_samples:
            predicted = sample["pred_sem_seg"]["data"].squeeze()
            label = sample["gt_sem_seg"]["data"].squeeze().to(predicted)
            intersect, union, *_ = IoUMetric.intersect_and_union(predicted, label, classes, self.ignore_index)
            paths = str(sample["img_path"]), str(sample.get("seg_map_path", ""))
            self.results.append((*paths, intersect.cpu().numpy(), union.cpu().numpy()))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """Write the file."""
        images, labels, intersect, union = zip(*sorted(results, key=lambda result: result[0]), strict=True)
        np.savez_compressed(
            self.file,
            images=np.array(images),
            labels=np.array(labels),
            intersect=np.stack(intersect),
            union=np.stack(union),
        )
        return {}
