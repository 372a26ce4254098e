"""Runs on data of which the format was found."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.data_formats import copy_yolo
from mmengine.config import Config
from PIL import Image

from apla_mm.data.reading import DataError
from apla_mm.formats import FoundData, find_data
from apla_mm.options.command_line import build_runner

pytestmark = pytest.mark.slow


def use(cfg: Config, found: FoundData) -> Config:
    """Put the data into a config."""
    for loader, split in (("train_dataloader", "train"), ("val_dataloader", "val"), ("test_dataloader", "val")):
        cfg[loader].dataset = dict(found.dataset(split), pipeline=cfg[loader].dataset.pipeline)
    cfg.val_evaluator = cfg.test_evaluator = found.evaluator()
    return cfg


def test_masks_of_0_and_255_are_trained_on(
    segmentation_config: Config, data_root: Path, tmp_path: Path, read_log: Callable[[], str]
) -> None:
    for path in data_root.rglob("*.png"):
        Image.fromarray((np.asarray(Image.open(path)) == 1).astype(np.uint8) * 255).save(path)
    found = find_data(data_root, "seg", tmp_path / "made", classes=["ground", "right"])
    build_runner(use(segmentation_config, found)).train()
    log = read_log()
    assert "train_dataloader: 3 of 3 samples read and found in order\n" in log
    assert "2 of 2 classes have pixels" in log and "mIoU:" in log


def test_label_maps_of_another_size_stop_a_run(segmentation_config: Config, data_root: Path, tmp_path: Path) -> None:
    path = data_root / "annotations/training/scene_1.png"
    Image.open(path).resize((24, 20), Image.Resampling.NEAREST).save(path)
    found = find_data(data_root, "seg", tmp_path / "made", classes=["left", "right"])
    with pytest.raises(DataError, match=rf"label map '{path}' is 24 x 20 and its image .* 48 x 40"):
        build_runner(use(segmentation_config, found)).train()


def test_yolo_is_trained_on(
    detection_config: Config, coco_root: Path, tmp_path: Path, read_log: Callable[[], str]
) -> None:
    root = copy_yolo(coco_root, tmp_path / "yolo", polygons=lambda i: True)
    found = find_data(root, "det", tmp_path / "made")
    build_runner(use(detection_config, found)).train()
    log = read_log()
    assert "4 images and 8 annotations in order" in log and "coco/bbox_mAP:" in log and "coco/segm_mAP:" in log
