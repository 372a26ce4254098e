# DINOv2 ViT-B/14 with registers (arXiv 2309.16588)
_base_ = "linear_dinov2-b14_apla_1xb16-160k_ade20k-518x518.py"
model = dict(backbone=dict(model_name="vit_base_patch14_reg4_dinov2.lvd142m"))
