"""Configs small enough to train for one or two steps on a CPU within seconds."""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from helpers import ROOT
from mmengine.config import Config

from apla_mm.options.class_folders import name_classes_by_folders
from apla_mm.options.shared_options import apply_shared_options

SEGMENTATION = ROOT / "configs/seg/apla_vitb_custom.py"

#: backbone -> its size, small: widths shrink, every kind of stage and block stays
SIZES: dict[str, dict[str, Any]] = {
    "APLAViT": dict(model_kwargs=dict(depth=4, embed_dim=32, num_heads=2), out_indices=(0, 1, 2, 3)),
    "VisionTransformer": dict(embed_dims=32, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3)),
    "SwinTransformer": dict(embed_dims=24, depths=(2, 2, 2, 2)),
    "MixVisionTransformer": dict(embed_dims=8, num_layers=[2, 2, 2, 2]),
}


def shrink(cfg: Config, sizes: Mapping[str, dict[str, Any]] = SIZES) -> None:
    """Reduce the sizes of images, model and schedule, in place, and start from random weights.

    Which parts there are, how they fit together, classes, hooks, losses and the optimizer stay as the file says; only
    stochastic depth is off.

    Args:
        cfg: Of a segmentor, detector or classifier.
        sizes: Of each type of backbone.
    """
    divisor = (
        14
        if cfg.default_scope == "mmpretrain"
        else (cfg.model.data_preprocessor.get("test_cfg") or {}).get("size_divisor", 16)
    )
    height, width = (side // divisor * divisor for side in (64, 96))
    crop_size = (height, width) if cfg.default_scope == "mmseg" else height
    apply_shared_options(cfg, dict(crop_size=crop_size, max_iters=2))
    cfg.train_cfg.val_interval = cfg.default_hooks.checkpoint.interval = 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    if cfg.default_scope == "mmdet":
        _shrink_detector(cfg, sizes)
        return
    if cfg.default_scope == "mmpretrain":
        _shrink_classifier(cfg, sizes)
        return
    _shrink_backbone(cfg, sizes)
    for head in heads_of(cfg):
        if head.type == "EoMTHead":
            head.num_queries, head.train_cfg.num_points = 8, 64
        elif head.type == "Mask2FormerHead":
            _shrink_mask2former(head)
        else:
            head.channels = 16 if head.get("num_convs", 1) else sum(head.in_channels)


def heads_of(cfg: Config) -> list[Any]:
    """The configs of all heads of a segmentation config."""
    auxiliary = cfg.model.get("auxiliary_head") or []
    return [cfg.model.decode_head, *(auxiliary if isinstance(auxiliary, list) else [auxiliary])]


def _shrink_detector(cfg: Config, sizes: Mapping[str, dict[str, Any]]) -> None:
    model = cfg.model
    stuff = model.get("panoptic_head", {}).get("num_stuff_classes")
    things = ["square", "disc"]
    classes = dict(thing_classes=things, stuff_classes=["ground"]) if stuff else dict(classes=things)
    apply_shared_options(cfg, classes)
    _shrink_backbone(cfg, sizes)
    if model.type == "Mask2Former":
        model.data_preprocessor.pad_size_divisor = 56
        model.panoptic_head.num_queries, model.train_cfg.num_points = 8, 64
        model.test_cfg.max_per_image = 5
    if model.type == "MaskRCNN":
        model.train_cfg.rcnn.sampler.num = 16
        model.roi_head.bbox_head.fc_out_channels = 32
    if model.type == "DINO":
        model.num_queries = model.test_cfg.max_per_img = 10
        model.dn_cfg.group_cfg.num_dn_queries = 4
        model.encoder.num_layers, model.decoder.num_layers = 1, 2


def _shrink_classifier(cfg: Config, sizes: Mapping[str, dict[str, Any]] = SIZES) -> None:
    backbone, head = cfg.model.backbone, cfg.model.head
    kwargs = sizes["APLAViT"]["model_kwargs"]
    backbone.update(model_kwargs=kwargs, pretrained=False, apla=dict(r=2))
    head.in_channels = kwargs["embed_dim"] * (2 if backbone.output == "cls_token+mean" else 1)


def classification_config(data_root: Path, work_dir: Path, **options: Any) -> Config:
    """The config of one's own images, for what write_class_folders wrote, with a tiny ViT and one iteration."""
    path = ROOT / "configs/cls/linear_dinov2-s14_apla_1xb64-10k_custom-224x224.py"
    cfg = Config.fromfile(path)
    apply_shared_options(cfg, dict(data_root=str(data_root), crop_size=28, **options))
    _shrink_classifier(cfg)
    name_classes_by_folders(cfg)
    return _shorten(cfg, work_dir)


def _shrink_backbone(cfg: Config, sizes: Mapping[str, dict[str, Any]]) -> None:
    backbone = cfg.model.backbone
    small = sizes[backbone.type]
    model = cfg.model
    parts = [model.neck] if model.get("neck") else heads_of(cfg) if "decode_head" in model else [model.panoptic_head]
    if backbone.type == "APLAViT":
        wide = parts[0].get("embed_dims") or parts[0].in_channels
        before, after = wide if isinstance(wide, int) else wide[0], small["model_kwargs"]["embed_dim"]
        if backbone.get("query_blocks"):
            small = dict(model_kwargs=small["model_kwargs"])
        if backbone.get("window_size"):
            small = dict(small, window_size=2, global_blocks=(1, 3), out_indices=(3,))
        backbone.pretrained = False
        if backbone.apla is not None and isinstance(backbone.apla.r, int):
            backbone.apla.r = backbone.apla.r * after // before
    else:
        before, after = backbone.embed_dims, small["embed_dims"]
        backbone.init_cfg = None
        backbone.drop_path_rate = 0.0  # of two images it may drop both, and nothing of a block would train
    backbone.update(small)
    for part in parts:
        if "embed_dims" in part:
            part.embed_dims = after
            continue
        wide = part.in_channels
        part.in_channels = wide * after // before if isinstance(wide, int) else [c * after // before for c in wide]


def _shrink_mask2former(head: Any) -> None:
    head.num_queries = 8
    head.pixel_decoder.encoder.num_layers = 1
    head.transformer_decoder.num_layers = 3  # one for each level of the maps
    head.train_cfg.num_points = 64


def segmentation_config(data_root: Path, work_dir: Path, file: Path = SEGMENTATION) -> Config:
    """configs/seg/apla_vitb_custom.py for what write_scenes wrote, with a tiny ViT and one iteration."""
    cfg = Config.fromfile(file)
    apply_shared_options(cfg, dict(data_root=str(data_root), classes=["left", "right"], crop_size=32))
    cfg.model.backbone.update(
        model_name="vit_tiny_patch16_224",
        model_kwargs=dict(depth=4, embed_dim=16, num_heads=2),
        out_indices=(0, 1, 2, 3),
        pretrained=False,
        apla=dict(r=4),
    )
    for head in (cfg.model.decode_head, *cfg.model.auxiliary_head):
        head.update(in_channels=16, channels=8)
    return _shorten(cfg, work_dir)


def detection_config(data_root: Path, work_dir: Path) -> Config:
    """configs/det/apla_vitb_custom.py for what write_coco wrote, with a tiny ViT and one iteration."""
    cfg = Config.fromfile(ROOT / "configs/det/apla_vitb_custom.py")
    apply_shared_options(cfg, dict(data_root=str(data_root), classes=["square", "disc"], crop_size=64))
    for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
        evaluator.ann_file = f"{data_root}/annotations/instances_val.json"
    cfg.model.backbone.update(
        model_name="vit_tiny_patch16_224",
        model_kwargs=dict(depth=2, embed_dim=16, num_heads=2),
        pretrained=False,
        apla=dict(r=4),
        window_size=None,
        global_blocks=(),
    )
    cfg.model.neck.update(in_channels=16, out_channels=16)
    narrow(cfg.model.rpn_head)
    narrow(cfg.model.roi_head)
    cfg.randomness = dict(seed=0)
    return _shorten(cfg, work_dir)


def narrow(part: Any) -> None:
    """Gives heads 16 channels."""
    for key, value in part.items():
        if isinstance(value, dict):
            narrow(value)
        elif key.endswith("channels"):
            part[key] = 16


def _shorten(cfg: Config, work_dir: Path) -> Config:
    """Leaves one iteration, and nothing that writes much."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.default_hooks.pop("checkpoint")
    for key in ("tta_pipeline", "train_pipeline", "test_pipeline"):
        cfg.pop(key, None)  # unused, and mmengine formats the whole config thrice
    cfg.visualizer.vis_backends = []  # each would write the config once more
    cfg.work_dir, cfg.experiment_name = str(work_dir), uuid.uuid4().hex
    return cfg
