"""Batches that need no data: random images with random annotations."""

from typing import Any

import torch

from .labels.heads import heads_of


def synthetic_batch(model: Any, size: int, batch_size: int, seed: int = 0) -> dict[str, Any]:
    """A batch as a data loader of mmseg or mmdet would give it.

    Args:
        model: A segmentor or detector.
        size: Height and width of the images in pixels.
        batch_size: How many.
        seed: Draws pixels and annotations.

    Returns:
        ``inputs``, a list of (3, size, size) uint8, and ``data_samples``: a map of up to twelve classes in blocks, or
        ten boxes with masks for each image.
    """
    generator = torch.Generator().manual_seed(seed)

    def draw(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=generator)

    inputs = [draw(256, 3, size, size).to(torch.uint8) for _ in range(batch_size)]
    meta = dict(img_shape=(size, size), ori_shape=(size, size), pad_shape=(size, size), scale_factor=(1.0, 1.0))
    samples: list[Any] = []
    if hasattr(model, "decode_head"):
        from mmengine.structures import PixelData
        from mmseg.structures import SegDataSample

        cell = torch.arange(size) * 8 // size
        for _ in inputs:
            present = torch.randperm(model.num_classes, generator=generator)[:12]
            labels = present[draw(len(present), 1, 8, 8)][:, cell][:, :, cell]
            samples.append(SegDataSample(metainfo=meta, gt_sem_seg=PixelData(data=labels)))
        return dict(inputs=inputs, data_samples=samples)

    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    classes = min((count for _, count in heads_of(model)), default=1)
    for _ in inputs:
        corner = draw(size // 2, 10, 2).float()
        boxes = torch.cat([corner, corner + size // 8 + draw(size // 4, 10, 2)], dim=1)
        masks = torch.zeros(10, size, size, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        labels = draw(min(2, classes), 10)
        instances = InstanceData(bboxes=boxes, labels=labels, masks=BitmapMasks(masks.numpy(), size, size))
        nothing = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
        samples.append(DetDataSample(metainfo=meta, gt_instances=instances, ignored_instances=nothing))
    return dict(inputs=inputs, data_samples=samples)
