# APLA on ViT-B/16: 64 of 768 output channels of each attention's projection train, and Mask R-CNN as in ViTDet
_base_ = [
    "../_base_/models/mask-rcnn_vit-b16.py",
    "../_base_/datasets/coco_lsj_1024x1024.py",
    "../_base_/schedules/adamw_90k.py",
    "../_base_/det_runtime.py",
]
model = dict(backbone=dict(apla=dict(r=64, seed=0)))
