# mmseg's SETR-PUP on its own ViT-B/16, adapted: 96 of 768 output channels of each W_O
_base_ = "setr-pup_mmseg-vit-l16_apla_8xb2-160k_ade20k-512x512.py"
model = dict(
    backbone=dict(
        embed_dims=768,
        num_layers=12,
        num_heads=12,
        out_indices=(4, 7, 9, 11),
        init_cfg=dict(
            checkpoint="https://mmassets.onedl.ai/mmsegmentation/v0.5/pretrain/segmenter/"
            "vit_base_p16_384_20220308-96dfe169.pth"
        ),
    ),
    decode_head=dict(in_channels=768),
    auxiliary_head=[dict(head, in_channels=768) for head in _base_.model.auxiliary_head],
)
