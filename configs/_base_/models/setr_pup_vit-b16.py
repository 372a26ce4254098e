# SETR-PUP (arXiv 2012.15840) on a timm ViT-B/16
size = (512, 512)
head = dict(
    type="SETRUPHead",
    in_channels=768,
    channels=256,
    num_classes=150,
    dropout_ratio=0,
    norm_cfg=dict(type="SyncBN", requires_grad=True),
    kernel_size=3,
    align_corners=False,
)
model = dict(
    type="EncoderDecoder",
    data_preprocessor=dict(
        type="SegDataPreProcessor",
        mean=[127.5, 127.5, 127.5],
        std=[127.5, 127.5, 127.5],
        bgr_to_rgb=True,
        pad_val=0,
        seg_pad_val=255,
        size=size,
        test_cfg=dict(size_divisor=16),
    ),
    backbone=dict(
        type="APLAViT",
        model_name="vit_base_patch16_384.augreg_in21k_ft_in1k",
        img_size=size,
        out_indices=(4, 7, 9, 11),
    ),
    decode_head=dict(
        **head, in_index=3, num_convs=4, up_scale=2, loss_decode=dict(type="CrossEntropyLoss", loss_weight=1.0)
    ),
    auxiliary_head=[
        dict(**head, in_index=i, num_convs=2, up_scale=4, loss_decode=dict(type="CrossEntropyLoss", loss_weight=0.4))
        for i in range(3)
    ],
    test_cfg=dict(mode="slide", crop_size=size, stride=(341, 341)),
)
del head, size
