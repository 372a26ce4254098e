# the paper's recipe for classification: DINOv2 ViT-B/14, its class token, 8 channels of each W_O, one rate for all
# your own images, a folder for each class: data_root/{train,val}/CLASS/*.jpg
_base_ = [
    "../_base_/models/linear-cls_dinov2-s14.py",
    "../_base_/datasets/class_folders_224x224.py",
    "../_base_/schedules/adamw_10k.py",
    "../_base_/cls_runtime.py",
]
model = dict(
    backbone=dict(model_name="vit_base_patch14_dinov2.lvd142m", output="cls_token", apla=dict(r=8, seed=0)),
    head=dict(in_channels=768),
)
