# your own images, a folder for each class: data_root/{train,val}/CLASS/*.jpg
# python tools/train.py configs/cls/linear_dinov2-s14_apla_1xb64-10k_custom-224x224.py --cfg-options data_root=FOLDER
_base_ = [
    "../_base_/models/linear-cls_dinov2-s14.py",
    "../_base_/datasets/class_folders_224x224.py",
    "../_base_/schedules/adamw_10k.py",
    "../_base_/cls_runtime.py",
]
model = dict(backbone=dict(apla=dict(r=64, seed=0)))
# the head starts from nothing and learns ten times as fast
optim_wrapper = dict(
    optimizer=dict(lr=3e-4),
    paramwise_cfg=dict(custom_keys=dict(head=dict(lr_mult=10.0))),
)
