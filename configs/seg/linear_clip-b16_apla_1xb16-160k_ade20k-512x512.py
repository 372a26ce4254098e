# CLIP ViT-B/16, trained on LAION-2B (arXiv 2212.07143)
_base_ = "linear_dinov3-b16_apla_1xb16-160k_ade20k-512x512.py"
model = dict(
    data_preprocessor=dict(mean=[122.7709383, 116.7460125, 104.09373615], std=[68.5005327, 66.6321579, 70.32316305]),
    backbone=dict(model_name="vit_base_patch16_clip_224.laion2b"),
)
