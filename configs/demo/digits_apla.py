_base_ = ["./_base_digits.py"]

model = dict(backbone=dict(apla=dict(r="full")))
optim_wrapper = dict(paramwise_cfg=dict(part_lr=dict(backbone=5.5e-4)))
