_base_ = ["./_base_digits.py"]

model = dict(backbone=dict(frozen=True))
