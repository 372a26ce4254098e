# COCO 2017's panoptic files: annotations/panoptic_{train,val}2017.json, and maps of segments in folders of these names
_base_ = "coco_lsj_1024x1024.py"
train_pipeline = _base_.train_pipeline
test_pipeline = _base_.test_pipeline
train_pipeline[1] = dict(type="LoadPanopticAnnotations", with_bbox=True, with_mask=True, with_seg=True)
train_pipeline[5]["keep_empty"] = False  # a crop of stuff alone is one to learn from
test_pipeline.pop(2)  # what is scored is read from the files
train_dataloader = dict(
    dataset=dict(
        type="CocoPanopticDataset",
        ann_file="annotations/panoptic_train2017.json",
        data_prefix=dict(img="train2017/", seg="annotations/panoptic_train2017/"),
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(
        type="CocoPanopticDataset",
        ann_file="annotations/panoptic_val2017.json",
        data_prefix=dict(img="val2017/", seg="annotations/panoptic_val2017/"),
        pipeline=test_pipeline,
    )
)
test_dataloader = val_dataloader
val_evaluator = dict(
    _delete_=True,
    type="CocoPanopticMetric",
    ann_file=f"{_base_.data_root}/annotations/panoptic_val2017.json",
    seg_prefix=f"{_base_.data_root}/annotations/panoptic_val2017/",
)
test_evaluator = val_evaluator
