# EVA-02 ViT-B/14 (arXiv 2303.11331)
_base_ = "linear_dinov2-b14_apla_1xb16-160k_ade20k-518x518.py"
model = dict(
    data_preprocessor=dict(mean=[122.7709383, 116.7460125, 104.09373615], std=[68.5005327, 66.6321579, 70.32316305]),
    backbone=dict(model_name="eva02_base_patch14_448.mim_in22k_ft_in22k"),
)
