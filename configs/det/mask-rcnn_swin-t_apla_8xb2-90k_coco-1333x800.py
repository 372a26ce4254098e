# Mask R-CNN on Swin-T, 1x, W_O trained in full; the paper's recipe: mask-rcnn_swin-t_paper_8xb2-12e_coco-1333x800.py
_base_ = [
    "../_base_/models/mask-rcnn_swin-t.py",
    "../_base_/datasets/coco_1333x800.py",
    "../_base_/schedules/adamw_90k.py",
    "../_base_/det_runtime.py",
]
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook", r="full")]
