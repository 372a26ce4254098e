# mmseg's SegFormer B2, adapted: an eighth of the output channels of each W_O, from 8 of 64 to 64 of 512
_base_ = "segformer_mit-b0_apla_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        embed_dims=64,
        num_layers=[3, 4, 6, 3],
        init_cfg=dict(
            checkpoint="https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segformer/mit_b2_20220624-66e8bf70.pth"
        ),
    ),
    decode_head=dict(in_channels=[64, 128, 320, 512]),
)
