# EoMT on DINOv2 ViT-L/14, adapted: 128 of 1024 output channels of each attention's projection train, and the queries
_base_ = [
    "../_base_/models/eomt_dinov2-l14.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
custom_imports = dict(imports=["apla_mm", "mmdet.models", "apla_mm.models.heads.eomt_head"], allow_failed_imports=False)
crop_size = (518, 518)
train_pipeline = _base_.train_pipeline
train_pipeline[3]["crop_size"] = crop_size
model = dict(backbone=dict(apla=dict(r=128, seed=0)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# the recipe's but for the backbone, which would train whole, each block at 0.8 of the rate of the next
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(_delete_=True, norm_decay_mult=0.0, custom_keys=dict(query=dict(decay_mult=0.0))),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-6, by_epoch=False, begin=0, end=1000),
    dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=1000, end=40000),
]
train_cfg = dict(max_iters=40000, val_interval=4000)
default_hooks = dict(checkpoint=dict(interval=4000), mask_annealing=dict(type="MaskAnnealingHook"))
