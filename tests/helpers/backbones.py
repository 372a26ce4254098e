"""Small backbones of mmseg, mmdet and mmpretrain, and runs of them."""

import torch
from helpers.data_sets import Noise
from mmengine.config import ConfigDict
from mmengine.dataset import DefaultSampler
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import nn

SIZE = 64

#: family -> (scope, backbone, number of attentions)
BACKBONES = {
    "mmseg ViT": (
        "mmseg",
        dict(
            type="VisionTransformer", img_size=SIZE, patch_size=16, embed_dims=32, num_layers=3, num_heads=2,
            out_indices=(2,),
        ),
        3,
    ),
    "mmseg Swin": (
        "mmseg",
        dict(
            type="SwinTransformer", pretrain_img_size=SIZE, embed_dims=16, depths=(2, 2), num_heads=(2, 4),
            strides=(4, 2), out_indices=(0, 1), window_size=4,
        ),
        4,
    ),
    "mmdet Swin": (
        "mmdet",
        dict(
            type="SwinTransformer", pretrain_img_size=SIZE, embed_dims=16, depths=(2, 2), num_heads=(2, 4),
            strides=(4, 2), out_indices=(0, 1), window_size=4,
        ),
        4,
    ),
    "MiT": (
        "mmseg",
        dict(
            type="MixVisionTransformer", embed_dims=16, num_stages=2, num_layers=(1, 2), num_heads=(1, 2),
            patch_sizes=(7, 3), strides=(4, 2), sr_ratios=(4, 1), out_indices=(0, 1),
        ),
        3,
    ),
    "PVT": (
        "mmdet",
        dict(
            type="PyramidVisionTransformer", pretrain_img_size=SIZE, embed_dims=16, num_stages=2, num_layers=(1, 2),
            num_heads=(1, 2), patch_sizes=(4, 2), strides=(4, 2), paddings=(0, 0), sr_ratios=(4, 1),
            out_indices=(0, 1), mlp_ratios=(2, 2),
        ),
        3,
    ),
    "PVTv2": (
        "mmdet",
        dict(
            type="PyramidVisionTransformerV2", embed_dims=16, num_layers=(1, 1, 1, 1), num_heads=(1, 2, 4, 8),
            mlp_ratios=(2, 2, 2, 2), out_indices=(0, 3),
        ),
        4,
    ),
    "Twins": (
        "mmseg",
        dict(
            type="SVT", embed_dims=[16, 32], num_heads=[1, 2], depths=[2, 2], mlp_ratios=[2, 2], sr_ratios=[4, 2],
            strides=[4, 2], windiow_sizes=[4, 4], out_indices=(0, 1), qkv_bias=True, norm_after_stage=True,
        ),
        4,
    ),
    "BEiT": (
        "mmseg",
        dict(
            type="BEiT", img_size=SIZE, patch_size=16, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1,),
            init_values=0.1,
        ),
        2,
    ),
    "MAE": (
        "mmseg",
        dict(
            type="MAE", img_size=SIZE, patch_size=16, embed_dims=32, num_layers=2, num_heads=2, out_indices=(1,),
            init_values=1.0,
        ),
        2,
    ),
    "mmseg TIMMBackbone": (
        "mmseg",
        dict(
            type="TIMMBackbone", model_name="vit_tiny_patch16_224", features_only=True, pretrained=False,
            out_indices=(0, 1),
            img_size=SIZE, embed_dim=32, depth=2, num_heads=2,
        ),
        2,
    ),
    "mmpretrain ViT": (
        "mmpretrain",
        dict(
            type="mmpretrain.VisionTransformer", img_size=SIZE, patch_size=16, out_type="featmap", out_indices=(1,),
            arch=dict(embed_dims=32, num_layers=2, num_heads=2, feedforward_channels=64),
        ),
        2,
    ),
    "mmpretrain SwinV2": (
        "mmpretrain",
        dict(
            type="mmpretrain.SwinTransformerV2", img_size=SIZE, window_size=4, out_indices=(0, 1),
            arch=dict(embed_dims=16, depths=[2, 2], num_heads=[2, 4], extra_norm_every_n_blocks=0),
        ),
        4,
    ),
}  # fmt: skip


class Model(BaseModel):
    """A backbone and a linear layer on the mean of its last map."""

    def __init__(self, backbone):
        super().__init__()
        self.backbone = MODELS.build(backbone)
        self.head = nn.LazyLinear(2)
        self.head_norm = nn.LayerNorm(2)
        with torch.no_grad():
            self.forward(torch.zeros(1, 3, SIZE, SIZE))

    def forward(self, inputs, mode="tensor", **_):
        x = self.backbone(inputs)[-1]
        y = self.head_norm(self.head(x.mean((-2, -1))))
        return {"loss": (y - 1).square().mean()} if mode == "loss" else y


def build(scope, backbone):
    __import__(f"{scope}.models")
    if not DefaultScope.check_instance_created(scope):
        DefaultScope.get_instance(scope, scope_name=scope)
    with DefaultScope.overwrite_default_scope(scope):
        torch.manual_seed(0)
        return Model(ConfigDict(backbone))


def make_runner(model, tmp_path, hook, iters=3, **kwargs):
    arguments = dict(
        model=model,
        work_dir=str(tmp_path),
        train_dataloader=dict(
            dataset=Noise(size=SIZE),
            sampler=dict(type=DefaultSampler, shuffle=False),
            batch_size=4,
            collate_fn=dict(type="default_collate"),
        ),
        train_cfg=dict(by_epoch=False, max_iters=iters),
        optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-2, weight_decay=0.1)),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=iters, by_epoch=False)),
        custom_hooks=[dict(type="APLAHook", **hook)],
        default_scope="mmengine",
        experiment_name=f"run_{tmp_path.name}",
    )
    return Runner(**{**arguments, **kwargs})
