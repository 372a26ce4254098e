# EoMT (arXiv 2503.19108) for things and stuff on DINOv2 ViT-L/14 with registers, images of 46 x 46 patches
_base_ = "eomt-instances_dinov2-l14.py"
classes = dict(num_things_classes=80, num_stuff_classes=53)
model = dict(
    data_preprocessor=dict(pad_seg=True, seg_pad_value=255),
    panoptic_head=classes,
    panoptic_fusion_head=classes,
    test_cfg=dict(panoptic_on=True, instance_on=False, object_mask_thr=0.8, iou_thr=0.8, filter_low_score=True),
)
del classes
