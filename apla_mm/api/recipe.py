"""The config that a task is trained by, fitted to a ViT of timm."""

from typing import Any

import timm
import torch
from mmengine.config import Config

from ..config_files import PACKAGE, find_config, read_config
from ..models.backbones.apla_vit import create_vit
from ..options.shared_options import apply_shared_options

#: task -> config, ViT, and side of images in pixels, unless others are given
TASKS = {
    "seg": ("seg/linear_dinov2-s14_apla_1xb16-160k_custom-518x518.py", "vit_small_patch14_dinov2.lvd142m", 518),
    "det": ("det/apla_vitb_custom.py", "vit_small_patch16_384.augreg_in21k_ft_in1k", 640),
}
_HEAD_STRIDES = (4, 8, 16, 32, 64)  #: of a pyramid on patches of 16 pixels


def recipe(task: str, backbone: str | None, image_size: int | None) -> Config:
    """The config of a task, with another ViT and size of images.

    Segmentors have a linear head on the last four blocks (as DINOv2, arXiv 2304.07193), detectors are Mask R-CNN on a
    simple feature pyramid (ViTDet, arXiv 2203.16527).

    Args:
        task: ``'seg'`` or ``'det'``.
        backbone: timm's name of a ViT, None for the task's own.
        image_size: Side of the images in pixels; None for the task's own, to whole patches.

    Raises:
        ValueError: There is no such task, or the ViT is none, or its patches do not fit the size.
    """
    if task not in TASKS:
        raise ValueError(f"task={task!r} must be 'seg' (a class for each pixel) or 'det' (boxes, and masks)")
    name, own, side = TASKS[task]
    backbone = backbone or own
    with torch.device("meta"):
        vit = create_vit(backbone)
    patch = vit.patch_embed.patch_size[0]
    side = image_size or round(side / patch) * patch
    if side % patch or side < 2 * patch:
        low, high = max(2, side // patch) * patch, max(2, side // patch + 1) * patch
        raise ValueError(f"image_size={side} is not made of patches of {patch} pixels: take {low} or {high}")
    cfg = read_config(find_config(f"{PACKAGE}::{name}"))
    apply_shared_options(cfg, dict(crop_size=side))
    published = timm.get_pretrained_cfg(backbone)
    if published is not None:
        cfg.model.data_preprocessor.update(
            mean=[255 * value for value in published.mean], std=[255 * value for value in published.std]
        )
    cfg.model.backbone.update(model_name=backbone, img_size=(side, side))
    (_fit_segmentor if task == "seg" else _fit_detector)(cfg, vit.embed_dim, len(vit.blocks), patch)
    return cfg


def _fit_segmentor(cfg: Config, width: int, depth: int, patch: int) -> None:
    cfg.model.backbone.out_indices = tuple(range(depth - 4, depth))
    cfg.model.decode_head.update(in_channels=[width] * 4, channels=4 * width)
    cfg.model.data_preprocessor.test_cfg.size_divisor = patch


def _fit_detector(cfg: Config, width: int, depth: int, patch: int) -> None:
    quarters = [depth * (i + 1) // 4 - 1 for i in range(4)]
    cfg.model.backbone.global_blocks = tuple(quarters)
    cfg.model.neck.in_channels = width
    strides = [stride * patch / 16 for stride in _HEAD_STRIDES]
    exact: list[Any] = [int(stride) if stride.is_integer() else stride for stride in strides]
    cfg.model.rpn_head.anchor_generator.strides = exact
    for extractor in (cfg.model.roi_head.bbox_roi_extractor, cfg.model.roi_head.mask_roi_extractor):
        extractor.featmap_strides = exact[:4]
