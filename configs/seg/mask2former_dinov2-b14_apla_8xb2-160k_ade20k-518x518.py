# Mask2Former on the plain DINOv2 ViT-B/14, adapted: 64 of 768 output channels of each W_O
_base_ = [
    "../_base_/models/mask2former_dinov2-b14.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
custom_imports = dict(imports=["apla_mm", "mmdet.models"])
crop_size = (518, 518)
train_pipeline = _base_.train_pipeline
train_pipeline[3]["crop_size"] = crop_size
model = dict(backbone=dict(apla=dict(r=64, seed=0)))
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# the recipe's, but for the backbone: of it a few channels train, as fast as the head
embedding = dict(decay_mult=0.0)
optim_wrapper = dict(
    optimizer=dict(lr=1e-4, weight_decay=0.05),
    clip_grad=dict(max_norm=0.01, norm_type=2),
    paramwise_cfg=dict(
        _delete_=True,
        norm_decay_mult=0.0,
        custom_keys=dict(query_embed=embedding, query_feat=embedding, level_embed=embedding),
    ),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=0.0, by_epoch=False, begin=0, end=160000)]
del embedding
