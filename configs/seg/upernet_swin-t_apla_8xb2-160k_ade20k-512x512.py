# mmseg's UPerNet on Swin-T, adapted: an eighth of the output channels of each W_O, from 12 of 96 to 96 of 768
_base_ = [
    "../_base_/models/upernet_swin-t.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook", r=0.125)]
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=0.2))))  # the recipe's 6e-5
