_base_ = ["./_base_digits.py"]

model = dict(backbone=dict(apla=dict(r=32, seed=0)))
optim_wrapper = dict(paramwise_cfg=dict(part_lr=dict(backbone=3.3e-3)))
