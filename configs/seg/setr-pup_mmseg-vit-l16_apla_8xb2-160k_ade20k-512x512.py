# mmseg's SETR-PUP on its own ViT-L/16, adapted: 128 of 1024 output channels of each W_O
_base_ = [
    "../_base_/models/setr_pup_mmseg-vit-l16.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook", r=0.125)]
