# EoMT's recipe, with MaskAnnealingHook; there the backbone trains whole, each block at 0.8 of the next one's rate
_base_ = "adamw_90k.py"
optim_wrapper = dict(
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, custom_keys=dict(query=dict(decay_mult=0.0))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1000),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=1000, end=90000),
]
