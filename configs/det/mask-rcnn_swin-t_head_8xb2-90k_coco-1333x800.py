# for comparison: neck and heads alone train
_base_ = "mask-rcnn_swin-t_apla_8xb2-90k_coco-1333x800.py"
custom_hooks = [dict(type="DataCheckHook"), dict(type="APLAHook", blocks="none")]
