"""Average precision of drawn images against pycocotools' of a data set that holds them as often."""

import contextlib
import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import write_coco
from mmdet.registry import DATASETS, METRICS
from mmengine.registry import init_default_scope
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from apla_mm.compare.scores.average_precision import average_precision


def predictions_for(truth: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Boxes near the true ones, some of the wrong category, some twice, and some of nothing."""
    generator = np.random.default_rng(seed)
    found = []
    for one in truth["annotations"]:
        for _ in range(generator.integers(1, 3)):
            box = np.array(one["bbox"], float) + generator.normal(0, 2, 4)
            category = one["category_id"] if generator.random() < 0.8 else 3 - one["category_id"]
            score = generator.random()
            found.append(dict(image_id=one["image_id"], category_id=category, bbox=box.tolist(), score=score))
    return found


def reference(truth: dict[str, Any], found: list[dict[str, Any]], counts: list[int], folder: Path) -> float:
    """With each image there as often as it counts, under ids of its own."""
    many: dict[str, Any] = dict(truth, images=[], annotations=[])
    copies = []
    for image, count in zip(sorted(truth["images"], key=lambda one: one["id"]), counts, strict=True):
        for k in range(count):
            new = image["id"] * 100 + k
            many["images"].append(dict(image, id=new))
            for one in truth["annotations"]:
                if one["image_id"] == image["id"]:
                    many["annotations"].append(dict(one, image_id=new, id=len(many["annotations"]) + 1))
            copies += [dict(one, image_id=new) for one in found if one["image_id"] == image["id"]]
    (folder / "many.json").write_text(json.dumps(many))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(folder / "many.json"))
        evaluation = COCOeval(coco, coco.loadRes(copy.deepcopy(copies)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


@pytest.mark.parametrize("seed", range(4))
def test_is_pycocotools_with_images_as_often_as_drawn(seed: int, tmp_path: Path) -> None:
    annotations = write_coco(tmp_path) / "annotations/instances_train.json"
    truth = json.loads(annotations.read_text())
    found = predictions_for(truth, seed)
    (tmp_path / "found.json").write_text(json.dumps(found))
    images, score = average_precision(
        tmp_path / "found.json", annotations, "bbox", [one["name"] for one in truth["categories"]]
    )
    assert len(images) == len(truth["images"])
    draws = [
        [1] * len(images),
        *np.random.default_rng(seed).multinomial(len(images), [1 / len(images)] * len(images), 5).tolist(),
    ]
    scores = score(np.array(draws, float))
    right = [reference(truth, found, counts, tmp_path) for counts in draws]
    np.testing.assert_allclose(scores, right, atol=1e-12)
    assert 0 < right[0] < 1


def test_categories_that_are_no_class_do_not_count(tmp_path: Path) -> None:
    annotations = write_coco(tmp_path) / "annotations/instances_train.json"
    truth = json.loads(annotations.read_text())
    name = truth["categories"][0]["name"]
    found = [one for one in predictions_for(truth, 0) if one["category_id"] == truth["categories"][0]["id"]]
    (tmp_path / "found.json").write_text(json.dumps(found))
    images, score = average_precision(tmp_path / "found.json", annotations, "bbox", [name])
    dataset = dict(type="CocoDataset", lazy_init=True, metainfo=dict(classes=(name,)))
    init_default_scope("mmdet")
    metric = METRICS.build(dict(type="CocoMetric", ann_file=str(annotations), metric="bbox"))
    metric.dataset_meta = DATASETS.build(dataset).metainfo
    for image in truth["images"]:
        own = [one for one in found if one["image_id"] == image["id"]]
        corners = np.array([one["bbox"] for one in own]).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        boxes = dict(bboxes=corners, scores=np.array([one["score"] for one in own]), labels=np.zeros(len(own), int))
        metric.results.append(
            (dict(width=image["width"], height=image["height"], img_id=image["id"]), dict(img_id=image["id"], **boxes))
        )
    right = metric.compute_metrics(metric.results)["bbox_mAP"]
    assert score(np.ones((1, len(images))))[0] == pytest.approx(right, abs=6e-4) and right > 0.1


def test_no_detection_is_a_score_of_zero(tmp_path: Path) -> None:
    annotations = write_coco(tmp_path) / "annotations/instances_train.json"
    (tmp_path / "found.json").write_text("[]")
    classes = [one["name"] for one in json.loads(annotations.read_text())["categories"]]
    images, score = average_precision(tmp_path / "found.json", annotations, "bbox", classes)
    assert score(np.ones((2, len(images)))).tolist() == [0, 0]
