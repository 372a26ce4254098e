# mmseg's Mask2Former on Swin-T, adapted: an eighth of the output channels of each W_O, from 12 of 96 to 96 of 768
_base_ = [
    "../_base_/models/mask2former_swin-t.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/mask2former_160k.py",
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
