# Mask R-CNN on a plain ViT-B/16 as in ViTDet (arXiv 2203.16527): windows of 16 x 16 tokens, four global blocks
_base_ = "mask-rcnn.py"
norm_cfg = dict(type="LN2d")
model = dict(
    data_preprocessor=dict(
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        pad_size_divisor=1024,  # in testing too: the position embedding is one of squares
    ),
    backbone=dict(
        type="APLAViT",
        model_name="vit_base_patch16_384.augreg_in21k_ft_in1k",
        img_size=(1024, 1024),
        norm=True,
        window_size=16,
        global_blocks=(2, 5, 8, 11),
    ),
    neck=dict(type="SimpleFeaturePyramid", in_channels=768, num_outs=5),
    rpn_head=dict(num_convs=2),
    roi_head=dict(
        bbox_head=dict(type="Shared4Conv1FCBBoxHead", norm_cfg=norm_cfg),
        mask_head=dict(norm_cfg=norm_cfg),
    ),
)
del norm_cfg
