# EoMT (arXiv 2503.19108) for instances on DINOv2 ViT-L/14 with registers, images of 46 x 46 patches
_base_ = "eomt_dinov2-l14.py"
size = (644, 644)
segmentor = _base_.model
classes = dict(num_things_classes=80, num_stuff_classes=0)
model = dict(
    _delete_=True,
    type="Mask2Former",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=segmentor.data_preprocessor.mean,
        std=segmentor.data_preprocessor.std,
        bgr_to_rgb=True,
        pad_mask=True,
        pad_size_divisor=644,  # in testing too: positions are those of squares
    ),
    backbone={**segmentor.backbone, "img_size": size},
    panoptic_head={
        **{key: value for key, value in segmentor.decode_head.items() if key not in ("num_classes", "train_cfg")},
        **classes,
        "num_queries": 200,
    },
    panoptic_fusion_head=dict(type="MaskFormerFusionHead", loss_panoptic=None, **classes),
    train_cfg=segmentor.decode_head.train_cfg,
    test_cfg=dict(panoptic_on=False, semantic_on=False, instance_on=True, max_per_image=100),
)
del size, segmentor, classes
