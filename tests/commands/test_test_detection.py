"""apla-mm test on a detector: its own evaluation, and the predictions that it keeps."""

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.data_sets import edit_json, write_coco
from helpers.logs import log_of
from helpers.tools import call_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from pycocotools import mask

from apla_mm.options.shared_options import apply_shared_options

pytestmark = pytest.mark.slow

CONFIG = ROOT / "configs/det/apla_vitb_custom.py"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A file with the config of a small Mask R-CNN, beside its data and its weights."""
    cfg = Config.fromfile(CONFIG)
    root = write_coco(tmp_path / "shapes")
    apply_shared_options(cfg, dict(data_root=str(root), classes=["square", "disc"], crop_size=64))
    cfg.model.backbone.update(
        model_name="vit_tiny_patch16_224",
        model_kwargs=dict(depth=2, embed_dim=16, num_heads=2),
        pretrained=False,
        apla=None,
        window_size=None,
        global_blocks=(),
    )
    cfg.model.neck.in_channels = 16
    cfg.custom_hooks = [dict(type="DataCheckHook")]
    cfg.test_dataloader.update(num_workers=0, persistent_workers=False)
    cfg.model.test_cfg.rcnn.score_thr = 0.0  # random weights are sure of nothing
    cfg.visualizer.vis_backends = []
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg.model)
    torch.save(dict(state_dict=model.state_dict(), meta={}), tmp_path / "weights.pth")
    cfg.dump(tmp_path / "config.py")
    return tmp_path / "config.py"


def run(config: Path, *arguments: object) -> None:
    weights, work_dir = config.with_name("weights.pth"), config.with_name("work")
    call_tool(ROOT / "tools/test.py", config, weights, "--work-dir", work_dir, *arguments)


def test_predictions_are_kept_and_scored(config: Path) -> None:
    out = config.with_name("out.pkl")
    for part in (*config.parent.glob("shapes/annotations/*train*"), *config.parent.glob("shapes/images/scene_[0-3]*")):
        part.unlink()  # only the test's data are there
    run(config, "--out", out)
    log = log_of(config.with_name("work"))
    assert "test_dataloader: 2 of 2 samples read and found in order" in log
    assert "coco/bbox_mAP:" in log and "coco/segm_mAP:" in log
    predictions = {sample["img_id"]: sample["pred_instances"] for sample in pickle.loads(out.read_bytes())}
    assert set(predictions) == {14, 15}
    for found in predictions.values():
        assert len(found["bboxes"]) == len(found["scores"]) == len(found["masks"]) > 0
        assert set(found["labels"].tolist()) <= {0, 1}
        assert np.stack([mask.decode(m) for m in found["masks"]]).shape[1:] == (48, 64)


def test_options_reach_the_evaluator(config: Path) -> None:
    (config.parent / "shapes/annotations/instances_val.json").rename(config.parent / "shapes/other.json")
    run(config, "--cfg-options", "test_dataloader.dataset.ann_file=other.json")
    log = log_of(config.with_name("work"))
    assert "shapes/other.json': 2 images and 4 annotations in order" in log
    assert "coco/bbox_mAP:" in log


def test_file_for_predictions_must_be_a_pickle(config: Path) -> None:
    with pytest.raises(SystemExit, match=r"--out of a config of mmdet must be a \.pkl file, and is predictions"):
        run(config, "--out", "predictions")


def predictions_of(out: Path) -> dict[str, np.ndarray]:
    return {
        Path(sample["img_path"]).name: sample["pred_instances"]["bboxes"].numpy()
        for sample in pickle.loads(out.read_bytes())
    }


@pytest.mark.parametrize("way", ["--images", "--unlabelled"])
def test_images_without_annotations_are_predicted(config: Path, way: str) -> None:
    run(config, "--out", config.with_name("labelled.pkl"))
    file = config.parent / "shapes/annotations/instances_val.json"
    edit_json(file, lambda content: content.pop("annotations"))
    out = config.with_name("out.pkl")
    if way == "--unlabelled":
        run(config, "--out", out, way)
    else:
        images = config.with_name("some") / "deep"
        images.mkdir(parents=True)
        for i in (4, 5):
            (config.parent / f"shapes/images/scene_{i}.jpg").rename(images / f"scene_{i}.jpg")
        file.unlink()
        run(config, "--out", out, way, images.parent)
    expected, found = predictions_of(config.with_name("labelled.pkl")), predictions_of(out)
    assert found.keys() == expected.keys() == {"scene_4.jpg", "scene_5.jpg"}
    assert all(np.array_equal(found[name], expected[name]) for name in expected)
    boxes, masks = (json.loads(config.with_name(f"out.{kind}.json").read_text()) for kind in ("bbox", "segm"))
    assert len(boxes) == len(masks) == sum(map(len, expected.values()))


def test_boxes_alone_are_tested_by_one_option(config: Path) -> None:
    for part in config.parent.glob("shapes/annotations/*.json"):
        edit_json(part, lambda content: [one.pop("segmentation") for one in content["annotations"]])
    run(config, "--out", config.with_name("out.pkl"), "--cfg-options", "with_mask=False")
    log = log_of(config.with_name("work"))
    assert "coco/bbox_mAP:" in log and "segm_mAP" not in log
    assert all(
        "masks" not in sample["pred_instances"] for sample in pickle.loads(config.with_name("out.pkl").read_bytes())
    )


def test_boxes_alone_are_trained_by_one_option(detection_config: Config, coco_root: Path, tmp_path: Path) -> None:
    for part in coco_root.glob("annotations/*.json"):
        edit_json(part, lambda content: [one.pop("segmentation") for one in content["annotations"]])
    detection_config.dump(tmp_path / "config.py")
    call_tool(ROOT / "tools/train.py", tmp_path / "config.py", "--cfg-options", "with_mask=False")
    log = log_of(Path(detection_config.work_dir))
    assert "coco/bbox_mAP:" in log and "loss_mask" not in log and "loss_bbox" in log
