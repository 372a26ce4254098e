"""Files in COCO's formats, looked at before training."""
