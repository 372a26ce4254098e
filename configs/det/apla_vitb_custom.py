# your own data set in COCO's format: data_root/images and data_root/annotations/instances_{train,val}.json
# apla-mm train configs/det/apla_vitb_custom.py --cfg-options data_root=FOLDER classes=cat,dog
_base_ = "apla_vitb_coco.py"
data_root = "data/my_dataset"
classes = ("object",)
dataset = dict(data_root=data_root, metainfo=dict(classes=classes), data_prefix=dict(img="images/"))
model = dict(
    roi_head=dict(bbox_head=dict(num_classes=len(classes)), mask_head=dict(num_classes=len(classes))),
)
train_dataloader = dict(dataset=dict(ann_file="annotations/instances_train.json", **dataset))
val_dataloader = dict(dataset=dict(ann_file="annotations/instances_val.json", **dataset))
test_dataloader = val_dataloader
val_evaluator = dict(ann_file=f"{data_root}/annotations/instances_val.json")
test_evaluator = val_evaluator
del dataset
