# a linear classifier on DINOv2 ViT-S/14 (arXiv 2304.07193): of the class token and the mean of the patches, as there
model = dict(
    type="ImageClassifier",
    data_preprocessor=dict(
        type="ClsDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        to_rgb=True,
    ),
    backbone=dict(
        type="APLAViT",
        model_name="vit_small_patch14_dinov2.lvd142m",
        img_size=(224, 224),
        output="cls_token+mean",
    ),
    # num_classes: as many as there are folders of classes
    head=dict(type="LinearClsHead", num_classes=None, in_channels=2 * 384),
)
