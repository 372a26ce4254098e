# EoMT (arXiv 2503.19108) on DINOv2 ViT-L/14 with registers: queries join its last four blocks; its head needs mmdet
_base_ = "encoder_decoder.py"
size = (518, 518)
model = dict(
    data_preprocessor=dict(size=size, test_cfg=dict(size_divisor=14)),
    backbone=dict(
        type="APLAViT",
        model_name="vit_large_patch14_reg4_dinov2.lvd142m",
        img_size=size,
        query_blocks=4,
    ),
    decode_head=dict(
        type="EoMTHead",
        embed_dims=1024,
        num_classes=150,
        num_queries=100,
        num_blocks=4,
        num_upscales=1,  # maps of a seventh of the image
        loss_cls=dict(type="mmdet.CrossEntropyLoss", loss_weight=2.0),
        loss_mask=dict(type="mmdet.CrossEntropyLoss", use_sigmoid=True, loss_weight=5.0),
        loss_dice=dict(type="mmdet.DiceLoss", naive_dice=True, eps=1.0, loss_weight=5.0),
        train_cfg=dict(
            num_points=12544,
            assigner=dict(
                type="mmdet.HungarianAssigner",
                match_costs=[
                    dict(type="mmdet.ClassificationCost", weight=2.0),
                    dict(type="mmdet.CrossEntropyLossCost", weight=5.0, use_sigmoid=True),
                    dict(type="mmdet.DiceCost", weight=5.0, pred_act=True, eps=1.0),
                ],
            ),
            sampler=dict(type="mmdet.MaskPseudoSampler"),
        ),
    ),
    test_cfg=dict(mode="slide", crop_size=size, stride=(345, 345)),
)
del size
