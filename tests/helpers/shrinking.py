"""Makes a config small enough to train for two steps on a CPU within seconds."""

from typing import Any

from mmengine.config import Config

from apla_mm.options.shared_options import apply_shared_options

#: backbone -> its size, small: widths shrink, every kind of stage and block stays
_SIZES: dict[str, dict[str, Any]] = {
    "APLAViT": dict(model_kwargs=dict(depth=4, embed_dim=32, num_heads=2), out_indices=(0, 1, 2, 3)),
    "VisionTransformer": dict(embed_dims=32, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3)),
    "SwinTransformer": dict(embed_dims=24, depths=(2, 2, 2, 2)),
    "MixVisionTransformer": dict(embed_dims=8, num_layers=[2, 2, 2, 2]),
}


def shrink(cfg: Config) -> None:
    """Reduce the sizes of images, model and schedule, in place, and start from random weights.

    Which parts there are, how they fit together, classes, hooks, losses and the optimizer stay as the file says; only
    stochastic depth is off.
    """
    divisor = (cfg.model.data_preprocessor.get("test_cfg") or {}).get("size_divisor", 16)
    apply_shared_options(cfg, dict(crop_size=64 // divisor * divisor, max_iters=2))
    cfg.train_cfg.val_interval = cfg.default_hooks.checkpoint.interval = 2
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(num_workers=0, persistent_workers=False)
    cfg.train_dataloader.batch_size = 2
    if cfg.default_scope == "mmdet":
        _shrink_detector(cfg)
        return
    _shrink_backbone(cfg)
    for head in heads_of(cfg):
        if head.type == "Mask2FormerHead":
            _shrink_mask2former(head)
        else:
            head.channels = 16


def heads_of(cfg: Config) -> list[Any]:
    """The configs of all heads of a segmentation config."""
    auxiliary = cfg.model.get("auxiliary_head") or []
    return [cfg.model.decode_head, *(auxiliary if isinstance(auxiliary, list) else [auxiliary])]


def _shrink_detector(cfg: Config) -> None:
    apply_shared_options(cfg, dict(classes=["square", "disc"]))
    model = cfg.model
    _shrink_backbone(cfg)
    if model.type == "MaskRCNN":
        model.train_cfg.rcnn.sampler.num = 16
        model.roi_head.bbox_head.fc_out_channels = 32
    if model.type == "DINO":
        model.num_queries = model.test_cfg.max_per_img = 10
        model.dn_cfg.group_cfg.num_dn_queries = 4
        model.encoder.num_layers, model.decoder.num_layers = 1, 2


def _shrink_backbone(cfg: Config) -> None:
    backbone = cfg.model.backbone
    small = _SIZES[backbone.type]
    parts = heads_of(cfg) if "decode_head" in cfg.model else [cfg.model.neck]
    if backbone.type == "APLAViT":
        before, after = parts[0].in_channels, small["model_kwargs"]["embed_dim"]
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
        wide = part.in_channels
        part.in_channels = wide * after // before if isinstance(wide, int) else [c * after // before for c in wide]


def _shrink_mask2former(head: Any) -> None:
    head.num_queries = 8
    head.pixel_decoder.encoder.num_layers = 1
    head.transformer_decoder.num_layers = 3  # one for each level of the maps
    head.train_cfg.num_points = 64
