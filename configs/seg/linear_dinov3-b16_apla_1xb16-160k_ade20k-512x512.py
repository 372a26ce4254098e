# a linear head on the last four blocks of DINOv3 ViT-B/16 (arXiv 2508.10104), 64 channels of each W_O adapted
# the weights are gated: accept DINOv3's licence at their page, log in, or name a file: model.backbone.pretrained=FILE
_base_ = [
    "../_base_/models/linear_vit-b16.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
model = dict(backbone=dict(apla=dict(r=64, seed=0)))
train_dataloader = dict(batch_size=16)
