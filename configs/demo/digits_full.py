_base_ = ["./_base_digits.py"]

optim_wrapper = dict(paramwise_cfg=dict(part_lr=dict(backbone=3e-5)))
