# mmseg's SegFormer B0, adapted: an eighth of the output channels of each W_O, from 4 of 32 to 32 of 256
_base_ = [
    "../_base_/models/segformer_mit-b0.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook", r=0.125)]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=2.0))))  # the recipe's 6e-4
