# mmseg's Mask2Former on Swin-T, adapted: an eighth of the output channels of each W_O, from 12 of 96 to 96 of 768
_base_ = [
    "../_base_/models/mask2former_swin-t.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
custom_imports = dict(imports=["apla_mm", "mmdet.models"])
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook", r=0.125)]
train_pipeline = _base_.train_pipeline
train_pipeline[2] = dict(
    type="RandomChoiceResize",
    scales=[int(51.2 * i) for i in range(5, 21)],
    resize_type="ResizeShortestEdge",
    max_size=2048,
)
train_dataloader = dict(dataset=dict(pipeline=train_pipeline))
# the recipe's, but for the backbone: it would train whole at 1e-5; of it a few channels train, as fast as the head
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
