import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.small_configs import heads_of
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from apla_mm.data.data_check_hook import DataCheckHook
from apla_mm.data.reading import DataError
from apla_mm.options.command_line import build_runner
from apla_mm.options.shared_options import apply_shared_options

pytestmark = pytest.mark.slow

SHARED = ROOT.parent / "shared/data"


def rewrite(root: Path, change: Callable[[np.ndarray], np.ndarray], split: str = "*") -> None:
    for path in root.glob(f"annotations/{split}/*.png"):
        Image.fromarray(change(np.array(Image.open(path)))).save(path)


def built(cfg: Config) -> Runner:
    runner = build_runner(cfg)
    assert runner.train_loop and runner.val_loop
    return runner


def set_ignored(cfg: Config, label: int) -> None:
    for part in (*heads_of(cfg), cfg.val_evaluator, cfg.test_evaluator):
        part.ignore_index = label
    cfg.model.data_preprocessor.seg_pad_val = label


def test_table_of_the_whole_set_is_logged(segmentation_config: Config, read_log: Callable[[], str]) -> None:
    DataCheckHook().before_train(built(segmentation_config))
    log = read_log()
    assert "train_dataloader: 3 label maps; 2 of 2 classes have pixels\nclass    label   pixels  images\nleft " in log
    assert "val_dataloader: 2 label maps; 2 of 2 classes have pixels\n" in log and "WARNING - train_data" not in log


def test_masks_of_0_and_255_are_an_error(segmentation_config: Config, data_root: Path) -> None:
    rewrite(data_root, lambda labels: np.where(labels == 1, 255, 0).astype(np.uint8))
    with pytest.raises(DataError, match=r"^train_dataloader: in all 3 label maps .* masks of 0 and 255"):
        DataCheckHook().before_train(built(segmentation_config))


@pytest.mark.parametrize("allowed", [False, True])
def test_class_without_a_pixel_is_an_error_unless_it_is_allowed(
    segmentation_config: Config, allowed: bool, read_log: Callable[[], str]
) -> None:
    apply_shared_options(segmentation_config, dict(classes=["left", "right", "third"]))
    hook = DataCheckHook(missing_classes=allowed)
    if not allowed:
        with pytest.raises(DataError, match=r"^train_dataloader: .* class third: .*missing_classes=True"):
            hook.before_train(built(segmentation_config))
    else:
        hook.before_train(built(segmentation_config))
        assert "WARNING - train_dataloader: in 3 label maps no pixel is of the class third" in read_log()


def test_255_is_no_label_where_254_is_ignored(segmentation_config: Config, data_root: Path) -> None:
    set_ignored(segmentation_config, 254)
    runner = built(segmentation_config)
    with pytest.raises(DataError, match=r"holds the labels \[255\]: .*\(254 is ignored\).*decode_head\.ignore_index"):
        DataCheckHook().before_train(runner)
    rewrite(data_root, lambda labels: np.where(labels == 255, 254, labels).astype(np.uint8))
    DataCheckHook().before_train(runner)


@pytest.mark.parametrize("size", [(32, 32), (64, 64)])
def test_padding_with_a_label_that_no_head_takes_is_found(
    segmentation_config: Config, data_root: Path, size: tuple[int, int], read_log: Callable[[], str]
) -> None:
    rewrite(data_root, lambda labels: np.where(labels == 255, 254, labels).astype(np.uint8))
    set_ignored(segmentation_config, 254)
    segmentation_config.model.data_preprocessor.size = size
    segmentation_config.train_dataloader.dataset.pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="RandomCrop", crop_size=(32, 32)),
        dict(type="PackSegInputs"),
    ]
    runner = built(segmentation_config)
    runner.model.data_preprocessor.seg_pad_val = 255
    if size == (64, 64):
        with pytest.raises(DataError, match=r"make the labels \[255\] where they fill or pad: set seg_pad_val"):
            DataCheckHook().before_train(runner)
    else:
        DataCheckHook().before_train(runner)
        assert "WARNING - train_dataloader: images that are smaller" in read_log()


def test_metric_that_ignores_another_label_is_named(segmentation_config: Config) -> None:
    segmentation_config.val_evaluator.ignore_index = 254
    with pytest.raises(DataError, match=r"validation/scene_.*holds the labels \[255\].*IoUMetric\.ignore_index=254"):
        DataCheckHook().before_train(built(segmentation_config))


def test_class_of_training_that_validation_lacks_is_a_warning(
    segmentation_config: Config, data_root: Path, read_log: Callable[[], str]
) -> None:
    rewrite(data_root, lambda labels: 0 * labels, "validation")
    DataCheckHook().before_train(built(segmentation_config))
    assert "WARNING - val_dataloader: in 2 label maps no pixel is of the class right, which training has" in read_log()


def test_more_classes_than_8_bits_hold_are_an_error(segmentation_config: Config) -> None:
    apply_shared_options(segmentation_config, dict(classes=[f"c{i}" for i in range(300)]))
    with pytest.raises(DataError, match=r"8 bits of each label, and the data set has 300 classes: .*'c256'"):
        DataCheckHook().before_train(built(segmentation_config))


def test_pipeline_that_asks_for_label_maps_which_are_none_is_an_error(segmentation_config: Config) -> None:
    dataset = segmentation_config.train_dataloader.dataset
    dataset.data_prefix = dict(img_path="images/training")
    with pytest.raises(DataError, match=r"asks for label maps, .* set data_prefix\.seg_map_path"):
        DataCheckHook().before_train(built(segmentation_config))


def test_random_numbers_are_as_they_were(segmentation_config: Config) -> None:
    runner = built(segmentation_config)
    drawn: list[Any] = []
    for look in (lambda: None, lambda: DataCheckHook().before_train(runner)):
        random.seed(1), np.random.seed(1), torch.manual_seed(1)
        look()
        drawn.append((random.random(), np.random.rand(), torch.rand(1).item()))
    assert drawn[0] == drawn[1]


def test_genuine_samples_pass_without_a_warning(segmentation_config: Config, read_log: Callable[[], str]) -> None:
    root = SHARED / "ade20k_sample"
    if not root.exists():
        pytest.skip(f"needs {root}")
    for name in ("train", "val", "test"):
        loader = segmentation_config[f"{name}_dataloader"]
        loader.batch_size = 1  # of images that are of several sizes
        dataset = loader.dataset
        dataset.pop("metainfo")
        dataset.update(type="ADE20KDataset", reduce_zero_label=True, data_root=str(root))
        dataset.data_prefix = dict(img_path="images", seg_map_path="annotations")
    for head in heads_of(segmentation_config):
        head.num_classes = 150
    DataCheckHook().before_train(built(segmentation_config))
    assert "3 label maps; 15 of 150 classes have pixels" in read_log() and "WARNING - train_data" not in read_log()
    assert "WARNING - val_data" not in read_log()


def test_genuine_masks_of_animals_pass_without_a_warning(
    segmentation_config: Config, read_log: Callable[[], str]
) -> None:
    root = SHARED / "animals"
    if not root.exists():
        pytest.skip(f"needs {root}")
    names = ["background", "bear", "deer", "elephant", "otter", "rhesus monkey", "tiger", "turtle"]
    apply_shared_options(segmentation_config, dict(data_root=str(root), classes=names))
    for name, split in (("train", "train"), ("val", "val"), ("test", "val")):
        prefix = dict(img_path=f"images/{split}", seg_map_path=f"annotations_semantic/{split}")
        segmentation_config[f"{name}_dataloader"].dataset.data_prefix = prefix
        segmentation_config[f"{name}_dataloader"].batch_size = 1
    DataCheckHook().before_train(built(segmentation_config))
    log = read_log()
    assert "8 of 8 classes have pixels" in log and "WARNING - train_data" not in log and "WARNING - val_data" not in log
