_base_ = ["./_base_digits.py"]

optim_wrapper = dict(optimizer=dict(lr=1e-3))
