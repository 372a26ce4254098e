# Mask2Former on the plain DINOv2 ViT-B/14, adapted: 64 of 768 output channels of each W_O
_base_ = [
    "../_base_/models/mask2former_dinov2-b14.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/mask2former_160k.py",
    "../_base_/seg_runtime.py",
]
custom_imports = dict(imports=["apla_mm", "mmdet.models"])
crop_size = (518, 518)
train_pipeline = _base_.train_pipeline
train_pipeline[3]["crop_size"] = crop_size
model = dict(backbone=dict(apla=dict(r=64, seed=0)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
