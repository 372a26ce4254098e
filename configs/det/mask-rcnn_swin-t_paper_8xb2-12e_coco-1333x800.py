# the paper's recipe for detection: Mask R-CNN on Swin-T, W_O trained in full for 12 epochs, of several scales
# to expect of full fine-tuning, from mmdet's model zoo, of one scale: 42.7 / 39.3 AP of boxes and masks
_base_ = "mask-rcnn_swin-t_apla_8xb2-90k_coco-1333x800.py"
scales = [(side, 1333) for side in range(480, 801, 32)]
train_pipeline = _base_.train_pipeline
train_pipeline[2:4] = [
    dict(type="RandomFlip", prob=0.5),
    dict(
        type="RandomChoice",
        transforms=[
            [dict(type="RandomChoiceResize", scales=scales, keep_ratio=True)],
            [
                dict(type="RandomChoiceResize", scales=[(400, 1333), (500, 1333), (600, 1333)], keep_ratio=True),
                dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
                dict(type="RandomChoiceResize", scales=scales, keep_ratio=True),
            ],
        ],
    ),
]
model = dict(backbone=dict(drop_path_rate=0.1))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# an epoch of COCO's 117,266 images with objects has 7330 steps of 16
train_cfg = dict(max_iters=12 * 7330, val_interval=7330)
no_decay = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        _delete_=True,
        custom_keys=dict(absolute_pos_embed=no_decay, relative_position_bias_table=no_decay, norm=no_decay),
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=12 * 7330, milestones=[8 * 7330, 11 * 7330], gamma=0.1),
]
default_hooks = dict(checkpoint=dict(interval=7330))
del scales, no_decay
