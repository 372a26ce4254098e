"""Images by which an exported file is checked."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope
from PIL import Image, ImageOps

from ..data.folders import datasets_of

#: (height, width) of generated images
SIZES = ((375, 500), (480, 360))


def find_images(cfg: Config, given: Sequence[str | Path], folder: Path, count: int = 2) -> tuple[list[Path], str]:
    """Images to compare by: those that are given, else some of the test's data set, else generated ones.

    Args:
        cfg: The config.
        given: Image files.
        folder: Where images are generated.
        count: How many of the data set are taken.

    Returns:
        The files, and where they are from.

    Raises:
        FileNotFoundError: A given file is not there.
    """
    if given:
        paths = [Path(path) for path in given]
        for path in paths:
            if not path.is_file():
                raise FileNotFoundError(f"image '{path}' of --images is not there")
        return paths, "given"
    init_default_scope(cfg.get("default_scope") or "mmengine")
    paths = []
    for settings in datasets_of(cfg, "test_dataloader")[:1]:
        with suppress(OSError, ValueError, KeyError):
            dataset = DATASETS.build(dict(settings, pipeline=[], lazy_init=False))
            paths = [Path(dataset.get_data_info(i)["img_path"]) for i in range(min(count, len(dataset)))]
    if paths and all(path.is_file() for path in paths):
        return paths, "of the test's data set"
    return [generate_image(folder / f"image_{i}.png", size, seed=i) for i, size in enumerate(SIZES)], (
        "generated, since the test's data set is not there: give some by --images"
    )


def generate_image(path: Path, size: tuple[int, int], seed: int) -> Path:
    """Write an image of smooth and fine noise, with the frequencies of a photo."""
    rng = np.random.default_rng(seed)
    height, width = size
    total = np.zeros((height, width, 3))
    for cells in (2, 4, 8, 16, 32, 64):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)) / cells
    total = (total - total.min()) / (total.max() - total.min()) * 255
    Image.fromarray(total.astype(np.uint8)).save(path)
    return path


def resized_copy(path: Path, size: tuple[int, int], to: Path) -> Path:
    """Write an image at another (height, width); itself, if it has that one."""
    image = _upright(path)
    if image.size == size[::-1]:
        return path
    image.resize(size[::-1], Image.Resampling.BILINEAR).save(to)
    return to


def size_of(path: Path) -> tuple[int, int]:
    """(height, width) of an image file."""
    width, height = _upright(path).size
    return height, width


def flipped_copy(path: Path, to: Path) -> Path:
    """Write an image mirrored."""
    _upright(path).transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(to)
    return to


def _upright(path: Path) -> Image.Image:
    """An image turned as its EXIF says, as mmcv reads it."""
    with Image.open(path) as image:
        return ImageOps.exif_transpose(image).convert("RGB")
