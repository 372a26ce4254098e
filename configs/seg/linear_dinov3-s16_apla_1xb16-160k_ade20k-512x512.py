# DINOv3 ViT-S/16; how its weights are had is said in the config of ViT-B
_base_ = "linear_dinov3-b16_apla_1xb16-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(model_name="vit_small_patch16_dinov3.lvd1689m"),
    decode_head=dict(in_channels=[384] * 4, channels=4 * 384),
)
