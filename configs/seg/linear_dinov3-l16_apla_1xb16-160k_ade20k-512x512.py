# DINOv3 ViT-L/16, maps of every sixth block; how its weights are had is said in the config of ViT-B
_base_ = "linear_dinov3-b16_apla_1xb16-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(model_name="vit_large_patch16_dinov3.lvd1689m", out_indices=(5, 11, 17, 23)),
    decode_head=dict(in_channels=[1024] * 4, channels=4 * 1024),
)
