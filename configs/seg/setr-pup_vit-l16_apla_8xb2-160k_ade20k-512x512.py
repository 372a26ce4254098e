# SETR-PUP on ViT-L/16, W_O trained in full; the paper's own recipe: setr-pup_vit-l16_paper_8xb2-160k_ade20k-512x512.py
_base_ = "apla_vitb_ade.py"
model = dict(
    backbone=dict(
        model_name="vit_large_patch16_384.augreg_in21k_ft_in1k",
        out_indices=(9, 14, 19, 23),
        apla=dict(r="full"),
    ),
    decode_head=dict(in_channels=1024),
    auxiliary_head=[dict(head, in_channels=1024) for head in _base_.model.auxiliary_head],
)
train_dataloader = dict(batch_size=2)
