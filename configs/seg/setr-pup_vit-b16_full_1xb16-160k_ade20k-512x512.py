# for comparison: all weights train
_base_ = "apla_vitb_ade.py"
model = dict(backbone=dict(apla=None))
optim_wrapper = dict(optimizer=dict(lr=6e-5))
