# the paper's recipe for segmentation: SETR-PUP on ViT-L/16, W_O trained in full by SGD, as mmseg trains all of it
# its statistics of images are ImageNet's, which these weights did not see
# to expect of full fine-tuning, from mmseg's model zoo: 48.24 mIoU
_base_ = "setr-pup_vit-l16_apla_8xb2-160k_ade20k-512x512.py"
model = dict(data_preprocessor=dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]))
optim_wrapper = dict(
    optimizer=dict(_delete_=True, type="SGD", lr=1e-3, momentum=0.9, weight_decay=0.0),
    paramwise_cfg=dict(_delete_=True, custom_keys=dict(head=dict(lr_mult=10.0))),
)
param_scheduler = [dict(type="PolyLR", power=0.9, eta_min=1e-4, by_epoch=False, begin=0, end=160000)]
