# for comparison: the head alone trains
_base_ = "apla_vitb_ade.py"
model = dict(backbone=dict(apla=None, frozen=True))
