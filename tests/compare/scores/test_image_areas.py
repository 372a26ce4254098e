"""What each image adds to the IoU, against mmseg's own metric."""

from pathlib import Path

import numpy as np
import pytest
import torch
from mmseg.evaluation.metrics import IoUMetric

from apla_mm.compare.scores.bootstrap import mean_iou
from apla_mm.compare.scores.image_areas import ImageAreas


def test_mean_iou_is_mmsegs(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(5):
        label, predicted = (torch.randint(3, (1, 8, 9), generator=generator) for _ in range(2))
        label[0, 0] = 255
        maps = dict(pred_sem_seg=dict(data=predicted), gt_sem_seg=dict(data=label))
        samples.append(dict(img_path=f"{5 - i}.jpg", seg_map_path=f"{5 - i}.png", **maps))
    theirs, ours = IoUMetric(), ImageAreas(str(tmp_path / "areas.npz"))
    for metric in (theirs, ours):
        metric.dataset_meta = dict(classes=("a", "b", "c", "d"))
        metric.process({}, samples)
    right = theirs.evaluate(5)["mIoU"]
    assert ours.evaluate(5) == {}
    images, score = mean_iou(tmp_path / "areas.npz")
    assert images == [f"{i}.jpg" for i in range(1, 6)]
    assert score(np.ones((1, 5)))[0] == pytest.approx(right, abs=0.006)  # mmseg rounds
    twice = score(np.array([[2.0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]))
    assert twice.shape == (2,) and twice[0] != twice[1]
    # the first image twice and the second not at all is the mean of a set that holds it so
    chosen = [4, 4, 2, 1, 0]  # by the samples' order, which is not that of the names
    again = IoUMetric()
    again.dataset_meta = theirs.dataset_meta
    again.process({}, [samples[i] for i in chosen])
    assert twice[0] == pytest.approx(again.evaluate(5)["mIoU"], abs=0.006)
    with np.load(tmp_path / "areas.npz") as areas:
        assert areas["labels"].tolist() == [f"{i}.png" for i in range(1, 6)]
