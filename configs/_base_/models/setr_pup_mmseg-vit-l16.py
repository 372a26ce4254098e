# SETR-PUP (arXiv 2012.15840) on mmseg's own ViT-L/16, whose attention is nn.MultiheadAttention
# the weights are those that mmseg's Segmenter starts from, in mmseg's own keys: nothing is to be converted
size = (512, 512)
head = dict(
    type="SETRUPHead",
    in_channels=1024,
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
    ),
    backbone=dict(
        type="VisionTransformer",
        img_size=size,
        patch_bias=True,  # the weights have one, and without it mmseg would drop it unsaid
        embed_dims=1024,
        num_layers=24,
        num_heads=16,
        out_indices=(9, 14, 19, 23),
        norm_cfg=dict(type="LN", eps=1e-6),
        interpolate_mode="bilinear",
        init_cfg=dict(
            type="Pretrained",
            checkpoint="https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segmenter/"
            "vit_large_p16_384_20220308-d4efb41d.pth",
        ),
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
