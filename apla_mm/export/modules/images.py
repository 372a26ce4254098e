"""What a config's test pipeline and data preprocessor do to an image, as a module that is exported with the model."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmcv.image import rescale_size
from mmengine.config import Config
from torch import Tensor, nn

from .byte_resize import resize_bytes
from .sizes import larger, smaller

Size = tuple[int, int]  #: (height, width)

#: steps of a test pipeline that do nothing to the pixels of an image that is in memory
_PASSED_OVER = ("LoadImageFromFile", "LoadAnnotations", "LoadPanopticAnnotations", "PackSegInputs", "PackDetInputs")


class Prepared(NamedTuple):
    """Images as the model takes them.

    Attributes:
        images: float32 (B, 3, padded height, padded width), normalised.
        size: Of the images after resizing, without padding.
        padded: With padding.
    """

    images: Tensor
    size: Size
    padded: Size


class PrepareImages(nn.Module):
    """Resizes, normalises and pads images as testing does.

    Args:
        mean: Of each channel, as the config states them.
        std: The same.
        flip_channels: Whether the model takes blue first.
        scale: The longer and the shorter side that an image shall fit, as of ``Resize``; None to leave images as they
            are.
        keep_ratio: Whether the ratio of the sides stays; if not, ``scale`` is (width, height).
        divisor: Padded sides are a multiple of it.
        pad_to: The least padded (height, width).
        pad_value: Of what is padded, after normalisation.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        std: Sequence[float],
        flip_channels: bool = False,
        scale: tuple[int, int] | None = None,
        keep_ratio: bool = True,
        divisor: int = 1,
        pad_to: Size = (0, 0),
        pad_value: float = 0,
    ) -> None:
        super().__init__()
        self.flip_channels, self.scale, self.keep_ratio = flip_channels, scale, keep_ratio
        self.divisor, self.pad_to, self.pad_value = divisor, pad_to, pad_value
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Prepared:
        """Prepare a batch.

        Args:
            images: uint8 (B, 3, H, W), red first.
        """
        size = self.resized(*images.shape[-2:])
        x = images if self.scale is None else resize_bytes(images, *size)
        x = x.float()
        if self.flip_channels:
            x = x.flip(1)
        x = (x - self.mean) / self.std
        padded = self.padded(*size)
        x = F.pad(x, (0, padded[1] - size[1], 0, padded[0] - size[0]), value=self.pad_value)
        return Prepared(x, size, padded)

    def resized(self, height: Any, width: Any) -> Any:
        """(height, width) after resizing; ints, or tensors while a model is traced."""
        if self.scale is None:
            return height, width
        if not self.keep_ratio:
            return self.scale[1], self.scale[0]
        if isinstance(height, int) and isinstance(width, int):
            new_width, new_height = rescale_size((width, height), tuple(self.scale))
            return new_height, new_width
        # the same in whole numbers: the lesser of what either side allows, rounded
        long, short = larger(height, width), smaller(height, width)
        return tuple(
            smaller(
                (2 * side * max(self.scale) + long) // (2 * long), (2 * side * min(self.scale) + short) // (2 * short)
            )
            for side in (height, width)
        )

    def padded(self, height: Any, width: Any) -> Any:
        """(height, width) of a resized image after padding."""
        sides = []
        for side, least in ((height, self.pad_to[0]), (width, self.pad_to[1])):
            if least:
                side = larger(side, least)
            sides.append((side + self.divisor - 1) // self.divisor * self.divisor)
        return tuple(sides)


def prepare_images(cfg: Config, preprocessor: Any) -> PrepareImages:
    """Make the module for a config.

    Args:
        cfg: The config, whose test pipeline is read.
        preprocessor: The model's data preprocessor, built.

    Raises:
        ValueError: A step of the pipeline, or a setting of the preprocessor, cannot be exported.
    """
    scale, keep_ratio = _resize_of(cfg)
    if not getattr(preprocessor, "_enable_normalize", False):
        raise ValueError("the model's data_preprocessor has no mean and std: export needs both")
    padding: dict[str, Any] = {}
    if type(preprocessor).__name__ == "SegDataPreProcessor":
        given = preprocessor.test_cfg or {}
        padding = dict(divisor=given.get("size_divisor") or 1, pad_to=tuple(given.get("size") or (0, 0)))
        padding["pad_value"] = preprocessor.pad_val
    elif type(preprocessor).__name__ == "DetDataPreprocessor":
        padding = dict(divisor=preprocessor.pad_size_divisor, pad_value=preprocessor.pad_value)
    else:
        raise ValueError(
            f"export knows mmseg's SegDataPreProcessor and mmdet's DetDataPreprocessor, not "
            f"{type(preprocessor).__name__}: use one of them, with the same mean and std"
        )
    # images are loaded blue first, and exchanged by the preprocessor or not at all
    flip = not preprocessor._channel_conversion
    mean, std = (getattr(preprocessor, name).flatten().tolist() for name in ("mean", "std"))
    return PrepareImages(mean, std, flip, scale, keep_ratio, **padding)


def _resize_of(cfg: Config) -> tuple[tuple[int, int] | None, bool]:
    scale: tuple[int, int] | None = None
    keep_ratio = True
    for step in test_pipeline(cfg):
        name = step["type"] if isinstance(step["type"], str) else step["type"].__name__
        name = name.rpartition(".")[2]
        if name in _PASSED_OVER:
            if step.get("to_float32") or step.get("color_type", "color") != "color":
                raise ValueError(f"{name} of the test pipeline loads images in another way than export does: {step}")
            continue
        if name != "Resize" or step.get("scale") is None or step.get("interpolation", "bilinear") != "bilinear":
            raise ValueError(
                f"export cannot express {dict(step)} of the test pipeline: it knows Resize with a scale, bilinear. "
                "Give a config whose test_dataloader has no such step, and do it to the images yourself"
            )
        if scale is not None:
            raise ValueError("the test pipeline resizes twice: export knows one Resize")
        given = step["scale"]
        scale = (given, given) if isinstance(given, int) else (int(given[0]), int(given[1]))
        keep_ratio = bool(step.get("keep_ratio", False))
    return scale, keep_ratio


def test_pipeline(cfg: Config) -> list[Mapping[str, Any]]:
    """The steps that a config's test does to an image.

    Raises:
        ValueError: It has no test pipeline.
    """
    dataset = (cfg.get("test_dataloader") or {}).get("dataset") or {}
    while "pipeline" not in dataset and isinstance(dataset.get("dataset"), Mapping):
        dataset = dataset["dataset"]
    steps = dataset.get("pipeline") or cfg.get("test_pipeline")
    if not steps:
        raise ValueError("the config has no test_dataloader with a pipeline, which export takes the image size from")
    return list(steps)
