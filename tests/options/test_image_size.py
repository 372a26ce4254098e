"""The size of the images that a classifier sees: what its pipelines give."""

import numpy as np
import pytest
from helpers import ROOT
from helpers.optional import needs
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope

from apla_mm.options.image_size import set_classified_size
from apla_mm.options.shared_options import apply_shared_options

needs("mmpretrain")
CONFIG = ROOT / "configs/cls/linear_dinov2-s14_apla_1xb64-10k_custom-224x224.py"


def shape_after(steps: list[dict]) -> tuple[int, ...]:
    results = dict(img=np.zeros((300, 500, 3), np.uint8), img_shape=(300, 500))
    with DefaultScope.overwrite_default_scope("mmpretrain"):
        for step in steps:
            results = TRANSFORMS.build(dict(step))(results)
    return results["img"].shape[:2]


@pytest.mark.parametrize(("crop_size", "size", "edge"), [(98, (98, 98), 112), ([84, 56], (84, 56), 96)])
def test_crop_size_is_that_of_what_pipelines_give(crop_size: object, size: tuple[int, int], edge: int) -> None:
    cfg = Config.fromfile(CONFIG)
    apply_shared_options(cfg, dict(crop_size=crop_size))
    assert tuple(cfg.model.backbone.img_size) == size
    for loader in ("train_dataloader", "val_dataloader", "test_dataloader"):
        assert shape_after(cfg[loader].dataset.pipeline[1:-1]) == size
    assert cfg.test_dataloader.dataset.pipeline[1].scale == edge  # 256 of 224 before
    assert cfg.test_pipeline == cfg.test_dataloader.dataset.pipeline


def test_other_steps_of_classification() -> None:
    steps = [dict(type="Resize", scale=(20, 10)), dict(type="RandomCrop", crop_size=8)]
    set_classified_size([], steps, (56, 84))
    assert steps[0]["scale"] == (84, 56) and steps[1]["crop_size"] == (56, 84)
    assert shape_after(steps) == (56, 84)
    alone = [dict(type="ResizeEdge", scale=300)]
    set_classified_size([], alone, (56, 84))
    assert alone[0]["scale"] == 56
    with pytest.raises(ValueError, match="EfficientNetRandomCrop cuts squares"):
        set_classified_size([], [dict(type="EfficientNetRandomCrop", scale=64)], (56, 84))
