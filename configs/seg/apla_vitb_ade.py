# APLA on ViT-B/16: 64 of 768 output channels of each attention's projection train, and the SETR-PUP head
_base_ = [
    "../_base_/models/setr_pup_vit-b16.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
model = dict(backbone=dict(apla=dict(r=64, seed=0)))
train_dataloader = dict(batch_size=16)
