_base_ = ["./_base_digits.py"]

model = dict(backbone=dict(frozen=True))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
