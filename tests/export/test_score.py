"""Scores of exported modules are what a runner's test gives of the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.optional import needs
from mmengine.config import Config
from mmengine.runner import Runner

from apla_mm.export.benchmark import Cost
from apla_mm.export.load import exported_module, load_model
from apla_mm.export.reference import Comparison
from apla_mm.export.score import Score, score
from apla_mm.export.table import Row, markdown

pytestmark = pytest.mark.slow


def in_torch(cfg: Config, checkpoint: Path) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    module = exported_module(cfg, load_model(cfg, checkpoint)[0])

    def run(images: np.ndarray) -> dict[str, np.ndarray]:
        with torch.no_grad():
            return {
                name: value.numpy()
                for name, value in zip(module.outputs, module(torch.from_numpy(images)), strict=True)
            }

    return run


def test_a_segmentors(segmentation_config: Config, tmp_path: Path) -> None:
    cfg = segmentation_config
    runner = Runner.from_cfg(cfg)
    expected = runner.test()
    torch.save(runner.model.state_dict(), tmp_path / "model.pth")
    run = in_torch(cfg, tmp_path / "model.pth")
    cfg.default_hooks.checkpoint = dict(save_best="mIoU")
    got = score(cfg, run)
    assert got == Score("mIoU", pytest.approx(expected["mIoU"]), len(runner.test_dataloader.dataset))
    assert score(cfg, run, count=1).images == 1
    height, width = 40, 56
    shapes = []

    def small(images: np.ndarray) -> dict[str, np.ndarray]:
        shapes.append(images.shape)
        return run(images)

    assert 0 <= score(cfg, small, (height, width), 1).value <= 100
    assert shapes == [(1, 3, height, width)]


def test_a_detectors_first_images(detection_config: Config) -> None:
    needs("mmdet")
    cfg = detection_config
    root = Path(cfg.test_dataloader.dataset.data_root)
    truths: dict[int, list[dict[str, Any]]] = {}
    from pycocotools.coco import COCO  # mmdet's

    coco = COCO(str(root / "annotations/instances_val.json"))
    for one in coco.loadAnns(coco.getAnnIds()):
        truths.setdefault(one["image_id"], []).append(one)
    first = truths[sorted(coco.imgs)[0]]
    height, width = (coco.imgs[first[0]["image_id"]][key] for key in ("height", "width"))

    def perfect(images: np.ndarray) -> dict[str, np.ndarray]:
        """The truth of the first image, at half the size."""
        boxes = np.array([[x, y, x + w, y + h] for x, y, w, h in (one["bbox"] for one in first)], np.float32) / 2
        labels = np.array([sorted(coco.cats).index(one["category_id"]) for one in first] + [-1], np.int32)
        masks = np.zeros((1, len(labels), height // 2, width // 2), bool)
        scores = np.ones((1, len(labels)), np.float32)
        boxes = np.concatenate([boxes, np.zeros((1, 4), np.float32)])
        return dict(boxes=boxes[None], scores=scores, labels=labels[None], masks=masks)

    cfg.test_evaluator.metric = "bbox"
    cfg.default_hooks.checkpoint = dict(save_best="coco/bbox_mAP")
    got = score(cfg, perfect, (height // 2, width // 2), 1)
    assert got == Score("coco/bbox_mAP", pytest.approx(1), 1)
    nothing = score(cfg, lambda images: {k: v[:, -1:] for k, v in perfect(images).items()}, None, 2)
    assert (nothing.name, nothing.images) == ("coco/bbox_mAP", 2) and np.isnan(nothing.value)


def test_a_table() -> None:
    same = Comparison(0, 1, 3)
    rows = [
        Row("torch, merged", 2, Cost(10, 300), same, Score("mIoU", 50, 4)),
        Row("onnxruntime", 3, Cost(5, 100), Comparison(2e-6, 0.9999, 3), Score("mIoU", 49.5, 4)),
    ]
    lines = markdown(rows).splitlines()
    assert lines[0].endswith("| equal | mIoU, 4 images |") and len({line.count("|") for line in lines}) == 1
    assert lines[3] == "| onnxruntime | 3.0 | 5.0 | 0.50 | 100 | 2e-06 | 99.99% | 49.5 |"
