"""A model that predicts for images."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmcv.transforms import Compose
from mmengine.registry import DefaultScope
from PIL import Image
from torch import nn

from ..data.reading import read_image
from ..options.predictions import without_labels
from .prediction import Prediction, colours_of

ImageLike = str | Path | np.ndarray | Image.Image


class Predictor:
    """Predicts by a model as a test of its config would.

    Args:
        model: A segmentor, detector or classifier in evaluation mode.
        scope: ``'mmseg'``, ``'mmdet'`` or ``'mmpretrain'``.
        pipeline: The config's, of a test.
        classes: Names.
        palette: RGB of each class, or None.

    Attributes:
        model: The model.
        classes: Names.
        palette: RGB of each class, uint8 (N, 3).

    Raises:
        ValueError: The pipeline does not begin with an image's file, or the palette is none.
    """

    def __init__(
        self, model: nn.Module, scope: str, pipeline: Sequence[Any], classes: tuple[str, ...], palette: Any = None
    ) -> None:
        self.model: Any = model
        self.classes, self.palette, self._scope = classes, colours_of(classes, palette), scope
        first, *rest = without_labels(list(pipeline))
        if "LoadImage" not in str(first.get("type")):
            raise ValueError(
                f"the config's test pipeline begins with {first.get('type')!r}: expected LoadImageFromFile"
            )
        with DefaultScope.overwrite_default_scope(scope):
            import_module(f"{scope}.datasets.transforms")
            self._prepare = Compose(rest)

    def predict(self, image: ImageLike) -> Prediction:
        """Predict for an image.

        Args:
            image: A file, an image of Pillow, or an array (H, W, 3) of uint8, RGB.

        Returns:
            What was found, at the image's own size.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no image.
        """
        return self.predict_prepared([self.prepare(image)])[0]

    def prepare(self, image: ImageLike) -> "Prepared":
        """Read an image and do to it what the config's test pipeline does; for :meth:`predict_prepared`.

        Raises:
            FileNotFoundError: There is no such file.
            ValueError: It is no image.
        """
        pixels = as_rgb(image)
        size = pixels.shape[:2]
        image_as_loaded = dict(img=np.ascontiguousarray(pixels[..., ::-1]), img_shape=size, ori_shape=size)
        with DefaultScope.overwrite_default_scope(self._scope):
            data = self._prepare(dict(image_as_loaded, img_path=None, img_id=0))
        return Prepared(pixels, data["inputs"], data["data_samples"])

    def predict_prepared(self, images: Sequence["Prepared"]) -> list[Prediction]:
        """Predict for images, those of one size as one batch: others would be padded, and be others to the model.

        In a batch results may differ from those of an image alone by rounding.

        Args:
            images: Of :meth:`prepare`.

        Returns:
            What was found in each, at the image's own size.
        """
        batches: dict[Any, list[int]] = {}
        for i, image in enumerate(images):
            batches.setdefault((image.pixels.shape, image.inputs.shape), []).append(i)
        found: dict[int, Prediction] = {}
        with DefaultScope.overwrite_default_scope(self._scope), torch.no_grad():
            for places in batches.values():
                inputs, samples = [images[i].inputs for i in places], [images[i].sample for i in places]
                outputs = self.model.test_step(dict(inputs=inputs, data_samples=samples))
                for i, sample in zip(places, outputs, strict=True):
                    found[i] = Prediction.of(images[i].pixels, sample, self.classes, self.palette)
        return [found[i] for i in range(len(images))]


@dataclass(frozen=True, eq=False)
class Prepared:
    """An image that is ready for a model.

    Attributes:
        pixels: (H, W, 3) uint8, RGB, as it was.
        inputs: (3, h, w), as the test pipeline gives it.
        sample: Its data sample.
    """

    pixels: np.ndarray
    inputs: torch.Tensor
    sample: Any


def as_rgb(image: ImageLike) -> np.ndarray:
    """The pixels of an image, (H, W, 3) uint8 RGB, turned as its EXIF says.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is no image, or an array of another kind.
    """
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, np.ndarray):
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or not image.size:
            raise ValueError(f"an array of {image.dtype}, {image.shape}: expected (H, W, 3) of uint8, RGB")
        return image
    path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"there is no image '{path}' (looked in {Path.cwd()})")
    return read_image(str(path), "image", flag="color", channel_order="rgb")
