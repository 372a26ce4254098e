# EoMT on DINOv2 ViT-L/14 for instances, adapted: 128 of 1024 output channels of each W_O train, and the queries
_base_ = [
    "../_base_/models/eomt-instances_dinov2-l14.py",
    "../_base_/datasets/coco_lsj_1024x1024.py",
    "../_base_/schedules/eomt_90k.py",
    "../_base_/det_runtime.py",
]
custom_imports = dict(imports=["apla_mm", "apla_mm.models.heads.eomt_head"], allow_failed_imports=False)
crop_size = (644, 644)
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[3]["scale"] = train_pipeline[4]["crop_size"] = test_pipeline[1]["scale"] = crop_size
model = dict(backbone=dict(apla=dict(r=128, seed=0)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
val_dataloader = dict(dataset=dict(pipeline=test_pipeline))
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(save_best="coco/segm_mAP"), mask_annealing=dict(type="MaskAnnealingHook"))
