# "1x": 90k steps of 16 images, 12 epochs of COCO, with steps down after 8/12 and 11/12 of them
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, weight_decay=0.05),
    constructor="TrainableOptimWrapperConstructor",
    paramwise_cfg=dict(norm_decay_mult=0.0, bias_decay_mult=0.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=1e-3, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, begin=0, end=90000, milestones=[60000, 82500], gamma=0.1),
]
train_cfg = dict(type="ResumableTrainLoop", max_iters=90000, val_interval=7500)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
auto_scale_lr = dict(enable=False, base_batch_size=16)
