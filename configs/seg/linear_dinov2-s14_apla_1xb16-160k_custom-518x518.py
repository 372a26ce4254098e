# your own data set, as in apla_vitb_custom.py, on DINOv2 ViT-S/14 with a linear head: the quickest to try
_base_ = [
    "../_base_/models/linear_dinov2-s14.py",
    "../_base_/datasets/ade20k_512x512.py",
    "../_base_/schedules/adamw_160k.py",
    "../_base_/seg_runtime.py",
]
data_root = "data/my_dataset"
classes = ("background", "object")
crop_size = (518, 518)
train_pipeline = _base_.train_pipeline
train_pipeline[3]["crop_size"] = crop_size
dataset = dict(type="BaseSegDataset", data_root=data_root, metainfo=dict(classes=classes))
model = dict(
    backbone=dict(apla=dict(r=64, seed=0)),
    decode_head=dict(num_classes=len(classes)),
    test_cfg=dict(mode="slide", crop_size=crop_size, stride=(345, 345)),
)
train_dataloader = dict(batch_size=16, dataset=dict(pipeline=train_pipeline, **dataset))
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
del dataset
