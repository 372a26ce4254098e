# Mask2Former's recipe, but for the backbone: it would train whole at 1e-5; of it a few channels train, as fast as heads
_base_ = "adamw_160k.py"
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
