# Mask2Former (arXiv 2112.01527) on the plain DINOv2 ViT-B/14: its last map, at four sizes, is the pyramid
_base_ = "mask2former_swin-t.py"
size = (518, 518)
model = dict(
    data_preprocessor=dict(size=size, test_cfg=dict(size_divisor=14)),
    backbone=dict(
        _delete_=True, type="APLAViT", model_name="vit_base_patch14_dinov2.lvd142m", img_size=size, norm=True
    ),
    neck=dict(type="SimpleFeaturePyramid", in_channels=768, num_outs=4),
    decode_head=dict(in_channels=[256] * 4),
)
del size
