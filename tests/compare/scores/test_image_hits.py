"""Which images are right, against mmpretrain's own accuracy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.optional import needs

from apla_mm.compare.scores.bootstrap import accuracy
from apla_mm.compare.scores.image_hits import ImageHits


def test_accuracy_is_mmpretrains(tmp_path: Path) -> None:
    metrics, structures = needs("mmpretrain.evaluation"), needs("mmpretrain.structures")
    generator = torch.Generator().manual_seed(0)
    samples = []
    for i in range(7):
        score = torch.rand(3, generator=generator)
        sample = structures.DataSample(metainfo=dict(img_path=f"{7 - i}.jpg"))
        sample.set_gt_label(i % 3).set_pred_score(score).set_pred_label(score.argmax())
        samples.append(sample.to_dict())
    theirs, ours = metrics.Accuracy(), ImageHits(str(tmp_path / "hits.npz"))
    for metric in (theirs, ours):
        metric.process({}, samples)
    right = theirs.evaluate(7)["accuracy/top1"]
    assert ours.evaluate(7) == {} and 0 < right < 100
    images, score = accuracy(tmp_path / "hits.npz")
    assert images == [f"{i}.jpg" for i in range(1, 8)]
    assert score(np.ones((1, 7)))[0] == pytest.approx(right)
    # the first image three times and two others not at all is the accuracy of a set that holds them so
    again = metrics.Accuracy()
    again.process({}, [samples[i] for i in (6, 6, 6, 3, 2, 1, 0)])
    drawn = score(np.array([[3.0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]))
    assert drawn == pytest.approx([again.evaluate(7)["accuracy/top1"], right])
