_base_ = ["./_base_digits.py"]

model = dict(backbone=dict(apla=dict(r=32, seed=0)))
optim_wrapper = dict(optimizer=dict(lr=1e-3))
