# your own data set, laid out as ADE20K:
#   data_root/images/{training,validation}/*.jpg and data_root/annotations/{training,validation}/*.png,
#   the label of a pixel being its class's index, 255 = ignored
# apla-mm train configs/seg/apla_vitb_custom.py --cfg-options data_root=FOLDER classes=background,cat,dog
_base_ = "apla_vitb_ade.py"
data_root = "data/my_dataset"
classes = ("background", "object")
dataset = dict(type="BaseSegDataset", data_root=data_root, metainfo=dict(classes=classes))
model = dict(
    decode_head=dict(num_classes=len(classes)),
    auxiliary_head=[dict(head, num_classes=len(classes)) for head in _base_.model.auxiliary_head],
)
train_dataloader = dict(dataset=dataset)
val_dataloader = dict(dataset=dataset)
test_dataloader = val_dataloader
del dataset
