# a linear head on the last four blocks of DINOv2 ViT-S/14 (arXiv 2304.07193, appendix), images of 37 x 37 patches
_base_ = "encoder_decoder.py"
size = (518, 518)
model = dict(
    data_preprocessor=dict(size=size, test_cfg=dict(size_divisor=14)),
    backbone=dict(
        type="APLAViT",
        model_name="vit_small_patch14_dinov2.lvd142m",
        img_size=size,
        out_indices=(8, 9, 10, 11),
        norm=True,
    ),
    decode_head=dict(
        type="FCNHead",
        in_channels=[384] * 4,
        in_index=[0, 1, 2, 3],
        input_transform="resize_concat",
        channels=4 * 384,
        num_convs=0,
        concat_input=False,
        num_classes=150,
        dropout_ratio=0.1,
        align_corners=False,
        loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0),
    ),
)
del size
