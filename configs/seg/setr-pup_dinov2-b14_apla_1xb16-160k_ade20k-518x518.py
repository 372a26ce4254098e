# APLA on DINOv2 ViT-B/14: images of 37 x 37 patches
_base_ = "apla_vitb_ade.py"
crop_size = (518, 518)
train_pipeline = _base_.train_pipeline
train_pipeline[3]["crop_size"] = crop_size
model = dict(
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        size=crop_size,
        test_cfg=dict(size_divisor=14),
    ),
    backbone=dict(model_name="vit_base_patch14_dinov2.lvd142m", img_size=crop_size, norm=True),
    test_cfg=dict(crop_size=crop_size, stride=(345, 345)),
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
