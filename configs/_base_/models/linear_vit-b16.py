# a linear head on the last four blocks of a ViT-B/16, DINOv3's (arXiv 2508.10104) unless another is named
_base_ = "linear_dinov2-s14.py"
size = (512, 512)
model = dict(
    data_preprocessor=dict(size=size, test_cfg=dict(size_divisor=16)),
    backbone=dict(model_name="vit_base_patch16_dinov3.lvd1689m", img_size=size),
    decode_head=dict(in_channels=[768] * 4, channels=4 * 768),
    test_cfg=dict(mode="slide", crop_size=size, stride=(341, 341)),
)
del size
