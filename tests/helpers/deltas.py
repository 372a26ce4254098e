"""Deltas of small models that share a base, as training writes them."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from helpers.data_sets import write_coco, write_scenes
from helpers.small_configs import detection_config, segmentation_config
from safetensors.torch import save_file

from apla_mm.delta import load_delta, save_delta
from apla_mm.options.command_line import build_runner

SIDE = 64
_VIT = dict(depth=4, embed_dim=16, num_heads=2)


def write_tasks(folder: Path) -> Path:
    """A folder with the deltas of a segmentor, ``regions``, and a detector, ``objects``, and their one base file."""
    weights = folder / "vit.safetensors"
    torch.manual_seed(0)
    save_file(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=SIDE, **_VIT).state_dict(), weights)
    configs = {
        "regions": segmentation_config(write_scenes(folder / "scenes"), folder / "regions"),
        "objects": detection_config(write_coco(folder / "shapes"), folder / "objects"),
    }
    configs["objects"].model.test_cfg.rcnn.update(score_thr=0.0, max_per_img=5)
    (folder / "tasks").mkdir()
    for name, cfg in configs.items():
        cfg.model.backbone.update(pretrained=str(weights), model_kwargs=_VIT, img_size=SIDE)
        cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=1)
        cfg.custom_hooks = [*cfg.custom_hooks, dict(type="DeltaHook")]
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
        build_runner(cfg).train()
        shutil.copyfile(next((folder / name).glob("*.delta.safetensors")), folder / f"tasks/{name}.delta.safetensors")
    (base,) = {path.name: path for path in folder.glob("*/base-*.safetensors")}.values()
    shutil.copyfile(base, folder / "tasks" / base.name)
    return folder / "tasks"


def write_variant(source: Path, target: Path, seed: int = 0, **header: Any) -> None:
    """A delta as another training would have left it: all that trained is moved at random."""
    delta = load_delta(source)
    generator = torch.Generator().manual_seed(seed)

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        noise = torch.randn(tensor.shape, generator=generator) if tensor.is_floating_point() else 0
        return tensor + (0.05 * noise).to(tensor.dtype) if tensor.is_floating_point() else tensor

    rows = {name: moved(value) for name, value in delta.rows.items()}
    tensors = {name: value if "running" in name else moved(value) for name, value in delta.tensors.items()}
    save_delta(replace(delta, rows=rows, tensors=tensors, header=replace(delta.header, **header)), target)
