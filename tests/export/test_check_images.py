"""Images that exported files are checked by: as mmcv reads them, and from whatever data set there is."""

from pathlib import Path

import mmcv
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from apla_mm.export.check_images import find_images, flipped_copy, resized_copy, size_of
from apla_mm.export.load import class_names


@pytest.mark.parametrize("turned", range(1, 9))
def test_photographs_are_upright(turned: int, tmp_path: Path) -> None:
    path, exif = tmp_path / "photo.jpg", Image.Exif()
    exif[0x0112] = turned
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:20, :30] = 255
    Image.fromarray(pixels).save(path, exif=exif, quality=95)
    upright = mmcv.imread(str(path), channel_order="rgb")
    assert size_of(path) == upright.shape[:2]
    assert resized_copy(path, size_of(path), tmp_path / "unused.png") == path
    mirrored = mmcv.imread(str(flipped_copy(path, tmp_path / "mirrored.png")), channel_order="rgb")
    assert np.abs(mirrored[:, ::-1].astype(int) - upright).max() < 8
    copy = mmcv.imread(str(resized_copy(path, (40, 40), tmp_path / "copy.png")), channel_order="rgb")
    small = mmcv.imresize(upright, (40, 40))
    assert copy.shape == (40, 40, 3) and np.abs(copy.astype(int) - small).mean() < 8


def test_images_of_a_data_set_within_others(segmentation_config: Config, tmp_path: Path) -> None:
    cfg = segmentation_config
    paths, where = find_images(cfg, [], tmp_path)
    names = class_names(cfg, {})
    inner = cfg.test_dataloader.dataset
    cfg.test_dataloader.dataset = dict(
        type="ConcatDataset", datasets=[dict(type="RepeatDataset", dataset=inner, times=2)]
    )
    assert find_images(cfg, [], tmp_path) == (paths, where) and where == "of the test's data set"
    assert class_names(cfg, {}) == names and names


def test_images_are_generated_where_there_is_no_data_set(segmentation_config: Config, tmp_path: Path) -> None:
    segmentation_config.pop("test_dataloader")
    paths, where = find_images(segmentation_config, [], tmp_path)
    assert len(paths) == 2 and all(path.parent == tmp_path for path in paths) and where.startswith("generated")
