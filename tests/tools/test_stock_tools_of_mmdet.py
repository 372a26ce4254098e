"""A config of mmdet's own and one line more, through mmdet's own tools."""

import re
from pathlib import Path

import mmdet
import pytest
import torch
from helpers.data_sets import write_coco
from helpers.processes import run, run_python
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from apla_mm.loading.checkpoint_reader import read_checkpoint

pytestmark = pytest.mark.slow

TOOLS = Path(mmdet.__file__).parent / ".mim/tools"
STOCK = "mmdet::swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco.py"
CONFIG = f"""
_base_ = "{STOCK}"
custom_imports = dict(imports=["apla_mm"])
custom_hooks = [dict(type="APLAHook", r=0.25)]
"""
MODEL = dict(backbone=dict(embed_dims=24, depths=[2, 2, 2, 2], init_cfg=None, drop_path_rate=0.0))


def options(root: Path) -> list[str]:
    """What makes the data set, the images and the model small."""
    given = [
        "model.backbone.embed_dims=24",
        "model.backbone.depths=[2,2,2,2]",
        "model.backbone.drop_path_rate=0.0",
        "model.backbone.init_cfg=None",
        "model.neck.in_channels=[24,48,96,192]",
        "model.roi_head.bbox_head.fc_out_channels=32",
        "model.roi_head.bbox_head.num_classes=2",
        "model.roi_head.mask_head.num_classes=2",
        "model.train_cfg.rcnn.sampler.num=16",
        "model.test_cfg.rcnn.score_thr=0.0",
        "train_cfg.max_epochs=1",
        "param_scheduler.0.start_factor=0.5",
        "param_scheduler.0.end=2",
        "param_scheduler.1.end=1",
        "param_scheduler.1.milestones=[1]",
        "randomness.seed=0",
    ]
    for split in ("train", "val", "test"):
        loader, name = f"{split}_dataloader", "train" if split == "train" else "val"
        given += [
            f"{loader}.num_workers=0",
            f"{loader}.persistent_workers=False",
            f"{loader}.dataset.data_root={root}",
            f"{loader}.dataset.ann_file=annotations/instances_{name}.json",
            f"{loader}.dataset.data_prefix.img=images/",
            f"{loader}.dataset.metainfo.classes=square,disc",
            f"{loader}.dataset.pipeline.{2 if split == 'train' else 1}.scale=(64,64)",
        ]
        if split != "train":
            given.append(f"{split}_evaluator.ann_file={root}/annotations/instances_val.json")
    return given


def test_one_line_adapts_mmdets_own_config(tmp_path: Path) -> None:
    alone = run_python("import mmdet.models", returncode=None)
    if alone.returncode:
        pytest.skip(f"mmdet by itself cannot be imported here: {alone.stderr.splitlines()[-1]}")
    root = write_coco(tmp_path / "shapes")
    config = tmp_path / "config.py"
    config.write_text(CONFIG)
    small = ("--cfg-options", *options(root))
    output = run(TOOLS / "train.py", config, "--work-dir", tmp_path / "work", *small).output
    assert "backbone: APLA: 6 to 48 channels train in each of 8 projections" in output
    trained, total = re.findall(r"first step: (\d+) of (\d+) trained tensors changed, 0 of \d+ frozen ones", output)[0]
    assert 0 < int(trained) <= int(total)

    cfg = Config.fromfile(config)
    cfg.merge_from_dict(dict(model=MODEL))
    with DefaultScope.overwrite_default_scope("mmdet"):
        backbone = MODELS.build(cfg.model.backbone)
    state = read_checkpoint(tmp_path / "work/epoch_1.pth")["state_dict"]
    prefix = "backbone."
    own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
    backbone.load_state_dict(own, strict=True)
    assert all(tensor.dtype == torch.float32 for tensor in own.values() if tensor.is_floating_point())

    checkpoint = tmp_path / "work/epoch_1.pth"
    output = run(TOOLS / "test.py", config, checkpoint, "--work-dir", tmp_path / "test", *small).output
    assert "coco/bbox_mAP:" in output and "coco/segm_mAP:" in output
