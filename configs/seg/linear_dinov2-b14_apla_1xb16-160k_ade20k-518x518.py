# a linear head on the last four blocks of DINOv2 ViT-B/14 (arXiv 2304.07193), 64 channels of each W_O adapted
_base_ = [
    "../_base_/models/linear_dinov2-s14.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
crop_size = (518, 518)
train_pipeline = _base_.train_pipeline
train_pipeline[3]["crop_size"] = crop_size
model = dict(
    backbone=dict(model_name="vit_base_patch14_dinov2.lvd142m", apla=dict(r=64, seed=0)),
    decode_head=dict(in_channels=[768] * 4, channels=4 * 768),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(345, 345)),
)
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline))
