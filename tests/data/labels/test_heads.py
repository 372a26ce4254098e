from pathlib import Path
from typing import Any

import mmdet.models
import mmseg.models
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from apla_mm.data.labels.heads import heads_of, is_in_head, is_other_type

MMDET = Path(mmdet.models.__file__).parents[1] / ".mim/configs"
MMSEG = Path(mmseg.models.__file__).parents[1] / ".mim/configs"


def build(path: Path, **model: Any) -> nn.Module:
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(dict(model=model))
    with DefaultScope.overwrite_default_scope("mmseg" if MMSEG in path.parents else "mmdet"), torch.device("meta"):
        return MODELS.build(cfg.model)


def names(part: str, count: int) -> list[str]:
    return [f"{part}.{i}" for i in range(count)]


DETECTORS = {
    "mask_rcnn/mask-rcnn_r50_fpn_1x_coco": ["roi_head.bbox_head", "roi_head.mask_head"],
    "retinanet/retinanet_r50_fpn_1x_coco": ["bbox_head"],
    "dino/dino-4scale_r50_8xb2-12e_coco": ["bbox_head"],
    "cascade_rcnn/cascade-mask-rcnn_r50_fpn_1x_coco": [
        *names("roi_head.bbox_head", 3),
        *names("roi_head.mask_head", 3),
    ],
    "htc/htc_r50_fpn_1x_coco": [*names("roi_head.bbox_head", 3), *names("roi_head.mask_head", 3)],
    "mask2former/mask2former_r50_8xb2-lsj-50e_coco": ["panoptic_head", "panoptic_fusion_head"],
    "point_rend/point-rend_r50-caffe_fpn_ms-1x_coco": [f"roi_head.{kind}_head" for kind in ("bbox", "mask", "point")],
    "rpn/rpn_r50_fpn_1x_coco": [],
}


@pytest.mark.parametrize(("name", "heads"), DETECTORS.items(), ids=DETECTORS)
def test_heads_of_detectors(name: str, heads: list[str]) -> None:
    assert dict(heads_of(build(MMDET / f"{name}.py"))) == dict.fromkeys(heads, 80)


SEGMENTORS = {
    "point_rend/pointrend_r50_4xb4-160k_ade20k-512x512": (150, names("decode_head", 2)),
    "mask2former/mask2former_r50_8xb2-160k_ade20k-512x512": (150, ["decode_head"]),
    "upernet/upernet_r50_4xb4-160k_ade20k-512x512": (150, ["decode_head", "auxiliary_head"]),
    "stdc/stdc1_4xb12-80k_cityscapes-512x1024": (19, ["decode_head", *names("auxiliary_head", 2)]),  # not the edges'
}


@pytest.mark.parametrize(("name", "classes", "heads"), [(k, *v) for k, v in SEGMENTORS.items()], ids=SEGMENTORS)
def test_heads_of_segmentors(name: str, classes: int, heads: list[str]) -> None:
    model = build(MMSEG / f"{name}.py", pretrained=None)
    assert dict(heads_of(model)) == dict.fromkeys(heads, classes)


def test_mask_head_for_all_classes_at_once_is_left_out() -> None:
    path = MMDET / "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py"
    model = build(path, roi_head=dict(mask_head=dict(class_agnostic=True)))
    assert dict(heads_of(model)) == {"roi_head.bbox_head": 80}


def test_loss_has_no_say() -> None:
    model = build(MMDET / "seesaw_loss/mask-rcnn_r50_fpn_seesaw-loss_random-ms-2x_lvis-v1.py")
    assert model.get_submodule("roi_head.bbox_head.loss_cls").num_classes == 1203
    assert dict(heads_of(model)) == {"roi_head.bbox_head": 1203, "roi_head.mask_head": 1203}


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("decode_head", True),
        ("module.decode_head.0", True),
        ("model.roi_head.bbox_head.loss_cls", True),
        ("rpn_head", False),
        ("roi_head.semantic_head", False),
        ("backbone.vit.head", False),
        ("backbone.cls_head", False),
        ("neck", False),
        ("dn_query_generator", False),
        ("", False),
    ],
)
def test_place_in_a_head_is_told_by_the_path(path: str, inside: bool) -> None:
    assert is_in_head(path) is inside


@pytest.mark.parametrize(("name", "other"), [("RPNHead", True), ("mmdet.RPNHead", True), ("RetinaHead", False)])
def test_heads_that_count_something_else_are_told_by_their_type(name: str, other: bool) -> None:
    assert is_other_type(name) is other
