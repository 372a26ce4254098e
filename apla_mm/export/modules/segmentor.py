"""A segmentor as one module: images of bytes in, labels at their size out."""

from typing import Any

import torch.nn.functional as F
from mmseg.models.segmentors import EncoderDecoder
from torch import Tensor, nn

from .images import PrepareImages
from .windows import Places, mean_of_windows, take_windows


class ExportedSegmentor(nn.Module):
    """A segmentor of mmseg's with what testing does before and behind it.

    Sliding windows are exact, and all windows of a batch run as one batch.

    Args:
        model: The segmentor, plain, in evaluation.
        prepare: What is done to images.

    Raises:
        ValueError: A segmentor or a test mode that cannot be exported.
    """

    outputs = ("labels", "scores")

    def __init__(self, model: EncoderDecoder, prepare: PrepareImages) -> None:
        super().__init__()
        mode = model.test_cfg.get("mode", "whole")
        if mode not in ("whole", "slide"):
            raise ValueError(f"test_cfg.mode='{mode}' cannot be exported: 'whole' and 'slide' can")
        for method in ("predict", "inference", "whole_inference", "slide_inference", "postprocess_result"):
            if getattr(type(model), method) is not getattr(EncoderDecoder, method):
                raise ValueError(
                    f"{type(model).__name__} has its own {method}, which export would pass over: export takes mmseg's "
                    "EncoderDecoder and CascadeEncoderDecoder"
                )
        if model.out_channels == 1:
            raise ValueError("a segmentor of a single channel (out_channels=1) cannot be exported: give it two classes")
        self.model, self.prepare = model, prepare
        self.windows = mode == "slide"

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Predict.

        Args:
            images: uint8 (B, 3, H, W), red first.

        Returns:
            Labels int32 (B, H, W) and their scores float32 (B, H, W), the largest logits.
        """
        height, width = images.shape[-2:]
        prepared = self.prepare(images)
        logits = self._slide(prepared.images) if self.windows else self._whole(prepared.images)
        logits = logits[:, :, : prepared.size[0], : prepared.size[1]]
        logits = F.interpolate(
            logits, size=(height, width), mode="bilinear", align_corners=self.model.align_corners or None
        )
        scores, labels = logits.max(1)
        return labels.int(), scores

    def _whole(self, images: Tensor) -> Tensor:
        size = tuple(images.shape[-2:])
        meta: dict[str, Any] = dict(ori_shape=size, img_shape=size, pad_shape=size)
        # heads that want one for each image have a fixed batch
        count = images.shape[0] if isinstance(images.shape[0], int) else 1
        logits: Tensor = self.model.encode_decode(images, [meta] * count)
        return logits

    def _slide(self, images: Tensor) -> Tensor:
        crop, stride = self.model.test_cfg.crop_size, self.model.test_cfg.stride
        rows, columns = (Places(side, crop[i], stride[i], images.device) for i, side in enumerate(images.shape[-2:]))
        logits = self._whole(take_windows(images, rows, columns))
        return mean_of_windows(logits, images.shape[0], rows, columns)
