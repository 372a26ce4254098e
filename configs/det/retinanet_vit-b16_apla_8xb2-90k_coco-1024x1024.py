# APLA on ViT-B/16 with RetinaNet: boxes alone, in one stage
_base_ = [
    "../_base_/models/retinanet_vit-b16.py",
    "../_base_/datasets/coco_lsj_1024x1024.py",
    "../_base_/schedules/adamw_90k.py",
    "../_base_/det_runtime.py",
]
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[1]["with_mask"] = test_pipeline[2]["with_mask"] = False
model = dict(backbone=dict(apla=dict(r=64, seed=0)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
val_evaluator = dict(metric="bbox")
test_evaluator = val_evaluator
optim_wrapper = dict(clip_grad=dict(max_norm=1.0))
