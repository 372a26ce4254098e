"""tools/test.py on a detector: its own evaluation, and the predictions that it keeps."""

import importlib.util
import pickle
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from pycocotools import mask

from apla_mm.options.shared_options import apply_shared_options

ROOT = Path(__file__).parents[2]
CONFIG = ROOT / "configs/det/apla_vitb_custom.py"


@pytest.fixture
def config(tmp_path: Path, make_coco_data_set: Callable[[Path], Path]) -> Path:
    """A file with the config of a small Mask R-CNN, beside its data and its weights."""
    cfg = Config.fromfile(CONFIG)
    root = make_coco_data_set(tmp_path / "shapes")
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


def run(monkeypatch: pytest.MonkeyPatch, config: Path, *arguments: object) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # the tool sets both: put them back afterwards
    monkeypatch.setenv("LOCAL_RANK", "0")
    weights, work_dir = config.with_name("weights.pth"), config.with_name("work")
    command = ["test.py", config, weights, "--work-dir", work_dir, *arguments]
    monkeypatch.setattr(sys, "argv", [str(part) for part in command])
    spec = importlib.util.spec_from_file_location("tools_test", ROOT / "tools/test.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main()


def test_predictions_are_kept_and_scored(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = config.with_name("out.pkl")
    for part in (*config.parent.glob("shapes/annotations/*train*"), *config.parent.glob("shapes/images/scene_[0-3]*")):
        part.unlink()  # only the test's data are there
    run(monkeypatch, config, "--out", out)
    (log,) = config.parent.glob("work/*/*.log")
    assert "test_dataloader: 2 of 2 samples read and found in order" in log.read_text()
    assert "coco/bbox_mAP:" in log.read_text() and "coco/segm_mAP:" in log.read_text()
    predictions = {sample["img_id"]: sample["pred_instances"] for sample in pickle.loads(out.read_bytes())}
    assert set(predictions) == {14, 15}
    for found in predictions.values():
        assert len(found["bboxes"]) == len(found["scores"]) == len(found["masks"]) > 0
        assert set(found["labels"].tolist()) <= {0, 1}
        assert np.stack([mask.decode(m) for m in found["masks"]]).shape[1:] == (48, 64)


def test_options_reach_the_evaluator(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (config.parent / "shapes/annotations/instances_val.json").rename(config.parent / "shapes/other.json")
    run(monkeypatch, config, "--cfg-options", "test_dataloader.dataset.ann_file=other.json")
    (log,) = config.parent.glob("work/*/*.log")
    assert "shapes/other.json': 2 images and 4 annotations in order" in log.read_text()
    assert "coco/bbox_mAP:" in log.read_text()


def test_file_for_predictions_must_be_a_pickle(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"--out of a detection config must be a \.pkl file, and is predictions"):
        run(monkeypatch, config, "--out", "predictions")
