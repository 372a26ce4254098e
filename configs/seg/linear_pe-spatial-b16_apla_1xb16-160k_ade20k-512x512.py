# Perception Encoder, spatial, ViT-B/16 (arXiv 2504.13181)
_base_ = "linear_dinov3-b16_apla_1xb16-160k_ade20k-512x512.py"
model = dict(
    data_preprocessor=dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5]),
    backbone=dict(model_name="vit_pe_spatial_base_patch16_512.fb"),
)
