# SAM ViT-B/16 (arXiv 2304.02643): its maps come before its neck
_base_ = "linear_dinov3-b16_apla_1xb16-160k_ade20k-512x512.py"
model = dict(backbone=dict(model_name="samvit_base_patch16.sa1b", norm=False))
