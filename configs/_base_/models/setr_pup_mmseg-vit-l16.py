# SETR-PUP (arXiv 2012.15840) on mmseg's own ViT-L/16, whose attention is nn.MultiheadAttention
# the weights are those that mmseg's Segmenter starts from, in mmseg's own keys: nothing is to be converted
_base_ = "setr_pup_vit-b16.py"
model = dict(
    data_preprocessor=dict(test_cfg=None),
    backbone=dict(
        _delete_=True,
        type="VisionTransformer",
        img_size=(512, 512),
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
    decode_head=dict(in_channels=1024),
    auxiliary_head=[dict(head, in_channels=1024) for head in _base_.model.auxiliary_head],
)
