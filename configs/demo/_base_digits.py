_base_ = ["../_base_/seg_runtime.py"]

crop_size = (96, 96)
data_root = "data/digits/"
num_classes = 11

model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[127.5, 127.5, 127.5],
        std=[64, 64, 64],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=crop_size,
    ),
    backbone=dict(
        type="APLAViT",
        model_name="vit_tiny_patch16_224",
        model_kwargs=dict(patch_size=8, embed_dim=128, depth=6, num_heads=4),
        img_size=96,
        out_indices=(1, 3, 5),
        norm=True,
        pretrained="demo/vit_digits.safetensors",
    ),
    decode_head=dict(
        type="SETRUPHead",
        in_channels=[128, 128, 128],
        in_index=[0, 1, 2],
        input_transform="resize_concat",
        channels=32,
        num_convs=2,
        up_scale=2,
        kernel_size=3,
        dropout_ratio=0,
        num_classes=num_classes,
        norm_cfg=dict(type="BN", requires_grad=True),
        align_corners=False,
        # Six pixels of seven are background.
        loss_decode=dict(type="CrossEntropyLoss", class_weight=[0.4] + [1.0] * (num_classes - 1)),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode="whole"),
)

# A data set of one's own: ADE20K's layout, names and colours given here.
dataset_type = "BaseSegDataset"
metainfo = dict(
    classes=('background', '0', '1', '2', '3', '4', '5', '6', '7', '8', '9'),
    palette=[
        [0, 0, 0], [230, 25, 75], [60, 180, 75], [255, 225, 25], [70, 110, 255], [245, 130, 48],
        [170, 60, 220], [70, 240, 240], [240, 50, 230], [188, 246, 12], [250, 190, 190],
    ],
)  # fmt: skip
# No flips: a mirrored digit is another thing.
train_pipeline = [dict(type="LoadImageFromFile"), dict(type="LoadAnnotations"), dict(type="PackSegInputs")]
val_pipeline = train_pipeline
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/training", seg_map_path="annotations/training"),
        img_suffix=".png",
        metainfo=metainfo,
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    sampler=dict(type="DefaultSampler", shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        data_prefix=dict(img_path="images/validation", seg_map_path="annotations/validation"),
        img_suffix=".png",
        metainfo=metainfo,
        pipeline=val_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type="IoUMetric", iou_metrics=["mIoU"])
test_evaluator = val_evaluator

max_iters = 200
train_cfg = dict(type="ResumableTrainLoop", max_iters=max_iters, val_interval=max_iters)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=9e-3, weight_decay=0.05),  # of the head, whatever trains beside it
    constructor="TrainableOptimWrapperConstructor",
    clip_grad=dict(max_norm=1.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=20),
    dict(type="PolyLR", power=0.9, eta_min=0, by_epoch=False, begin=20, end=max_iters),
]
default_hooks = dict(checkpoint=dict(interval=max_iters, save_best=None, max_keep_ckpts=1))
