# for comparison: neck and heads alone train
_base_ = "apla_vitb_coco.py"
model = dict(backbone=dict(apla=None, frozen=True))
