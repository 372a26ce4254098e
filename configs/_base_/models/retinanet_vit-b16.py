# RetinaNet (arXiv 1708.02002) on a plain ViT-B/16: levels of strides 8, 16, 32, 64, 128
_base_ = "mask-rcnn_vit-b16.py"
model = dict(
    _delete_=True,
    type="RetinaNet",
    data_preprocessor={k: v for k, v in _base_.model.data_preprocessor.items() if k != "pad_mask"},
    backbone=_base_.model.backbone,
    neck=dict(type="SimpleFeaturePyramid", in_channels=768, scale_factors=(2, 1, 0.5), num_outs=5),
    bbox_head=dict(
        type="RetinaHead",
        num_classes=80,
        in_channels=256,
        stacked_convs=4,
        feat_channels=256,
        norm_cfg=dict(type="LN2d"),
        anchor_generator=dict(
            type="AnchorGenerator",
            octave_base_scale=4,
            scales_per_octave=3,
            ratios=[0.5, 1.0, 2.0],
            strides=[8, 16, 32, 64, 128],
        ),
        bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        loss_cls=dict(type="FocalLoss", use_sigmoid=True, gamma=2.0, alpha=0.25),
        loss_bbox=dict(type="L1Loss"),
    ),
    train_cfg=dict(
        assigner=dict(type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0),
        sampler=dict(type="PseudoSampler"),
        allowed_border=-1,
        pos_weight=-1,
    ),
    test_cfg=dict(
        nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100
    ),
)
