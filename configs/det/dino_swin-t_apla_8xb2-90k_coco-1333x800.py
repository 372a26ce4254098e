# APLA on Swin-T with DINO, 12 epochs: boxes alone
_base_ = [
    "../_base_/models/dino_swin-t.py",
    "../_base_/datasets/coco_1333x800.py",
    "../_base_/schedules/adamw_90k.py",
    "../_base_/det_runtime.py",
]
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook", r="full")]
sides = range(480, 801, 32)
resize = dict(type="RandomChoiceResize", scales=[(side, 1333) for side in sides], keep_ratio=True)
crop = [
    dict(type="RandomChoiceResize", scales=[(side, 4200) for side in (400, 500, 600)], keep_ratio=True),
    dict(type="RandomCrop", crop_type="absolute_range", crop_size=(384, 600), allow_negative_crop=True),
]
train_pipeline = [
    dict(type="LoadImageFromFile"),
    dict(type="LoadAnnotations", with_bbox=True),
    dict(type="RandomFlip", prob=0.5),
    dict(type="RandomChoice", transforms=[[resize], [*crop, resize]]),
    dict(type="PackDetInputs"),
]
test_pipeline = _base_.test_pipeline
test_pipeline[2]["with_mask"] = False
train_dataloader = dict(dataset=dict(filter_cfg=dict(filter_empty_gt=False), pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
optim_wrapper = dict(optimizer=dict(weight_decay=1e-4), clip_grad=dict(max_norm=0.1))
param_scheduler = [dict(type="MultiStepLR", by_epoch=False, begin=0, end=90000, milestones=[82500], gamma=0.1)]
del crop, resize, sides
