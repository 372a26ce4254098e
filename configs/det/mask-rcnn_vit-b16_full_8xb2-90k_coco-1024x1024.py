# for comparison: all weights train
_base_ = "apla_vitb_coco.py"
model = dict(backbone=dict(apla=None))
optim_wrapper = dict(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1))))
