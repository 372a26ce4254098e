"""What a frozen backbone's features are worth on data that it was not adapted to."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ...formats.files import split_of_name, words_of
from ...text import listed

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp")
IGNORED = 255
NEIGHBOURS = 20
FOLDS = 5
CELL = 8  #: pixels of a label map, along each side, that decide on a patch's label


@dataclass(frozen=True)
class ProbeData:
    """Images with a class each, or with a label map each.

    Attributes:
        images: Files.
        labels: Of each image, the index of its class or the file of its label map.
    """

    images: tuple[Path, ...]
    labels: tuple[int | Path, ...]


def probe_data(folder: Path, most: int | None = None) -> ProbeData:
    """The data of a folder that has one folder of images for each class, or ``images/`` and ``annotations/``.

    Args:
        folder: In the latter case label maps are PNG files with the images' names.
        most: Images, evenly spread over all in the order of their names; None for all.

    Raises:
        ValueError: It has neither, an image has no label map, there are fewer than two classes, or they are named as
            splits, or as images, are.
    """
    if (folder / "annotations").is_dir():
        images = _images_in(folder / "images")
        maps = [folder / "annotations" / i.relative_to(folder / "images").with_suffix(".png") for i in images]
        if missing := [file for file in maps if not file.is_file()]:
            raise ValueError(
                f"{len(missing)} of {len(images)} images have no label map; the first would be {missing[0]}"
            )
        pairs: list[tuple[Path, int | Path]] = list(zip(images, maps, strict=True))
    else:
        classes = sorted(own for own in folder.iterdir() if own.is_dir()) if folder.is_dir() else []
        if len(classes) < 2:
            raise ValueError(
                f"{folder} must have a folder for each of two or more classes, or images/ and annotations/"
            )
        if all(split_of_name(own.name) for own in classes):
            raise ValueError(f"{folder} has {listed(own.name for own in classes)}, which are splits: give one of them")
        if kinds := [own.name for own in classes if set(words_of(own.name)) <= {"image", "images", "img", "imgs"}]:
            raise ValueError(f"{folder}/{kinds[0]} is no class: label maps of its images go into {folder}/annotations")
        pairs = [(file, label) for label, own in enumerate(classes) for file in _images_in(own)]
    if most and most < len(pairs):
        pairs = [pairs[i * len(pairs) // most] for i in range(most)]
    if len(pairs) < FOLDS:
        raise ValueError(f"{folder} has {len(pairs)} images, and {FOLDS} parts are made of them")
    images_, labels = zip(*pairs, strict=True)
    return ProbeData(images_, labels)


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


@torch.no_grad()
def features_of(
    backbone: nn.Module, preprocess: Callable[[Tensor], Tensor], images: Sequence[Path], size: int
) -> Tensor:
    """The backbone's last map of each image, resized to a square.

    Args:
        backbone: Gives maps (1, C, h, w), the last one last.
        preprocess: Makes (1, 3, size, size) of an image, uint8 (3, size, size) in BGR.
        images: Files.
        size: In pixels.

    Returns:
        float32 (images, h, w, C).
    """
    backbone.eval()
    return torch.stack([_last_map(backbone(preprocess(image))) for image in _read(images, size)])


def _read(files: Sequence[Path], size: int) -> Iterator[Tensor]:
    for file in files:
        image = cv2.resize(_read_image(file), (size, size), interpolation=cv2.INTER_AREA)
        yield torch.from_numpy(image).permute(2, 0, 1)


def _read_image(file: Path) -> NDArray[Any]:
    image = cv2.imread(str(file), cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f"{file} cannot be read as an image")
    return image


def _read_labels(file: Path) -> NDArray[Any]:
    try:
        labels = np.asarray(Image.open(file))  # of a palette: the indices
    except OSError as error:
        raise ValueError(f"{file} cannot be read as a label map: {error}") from error
    if labels.ndim != 2 or labels.max() > IGNORED:
        found = f"{labels.shape[2]} channels" if labels.ndim != 2 else f"labels up to {labels.max()}"
        raise ValueError(f"the label map {file} has {found}: expected one channel and labels up to {IGNORED}")
    return labels.astype(np.uint8)


def _last_map(outputs: Any) -> Tensor:
    while isinstance(outputs, list | tuple):
        outputs = outputs[-1]
    return outputs[0].float().permute(1, 2, 0)


@dataclass(frozen=True)
class Samples:
    """What a probe tells apart: whole images, or patches.

    Attributes:
        features: (N, C).
        labels: (N,).
        images: (N,), which image each is of: one is never on both sides.
    """

    features: NDArray[np.float32]
    labels: NDArray[np.int64]
    images: NDArray[np.int64]


def samples_of(features: Tensor, data: ProbeData, most: int = 4000) -> Samples:
    """The samples of features: the mean of each image that has a class, or the patches that have one label.

    Args:
        features: float32 (images, h, w, C).
        data: What they are of.
        most: Patches, evenly spread over all.
    """
    count, height, width, channels = features.shape
    maps = [label for label in data.labels if isinstance(label, Path)]
    if not maps:
        return Samples(features.mean((1, 2)).numpy(), np.array(data.labels), np.arange(count))
    labels = np.stack([_patch_labels(_read_labels(file), height, width) for file in maps])
    known = np.flatnonzero(labels.ravel() != IGNORED)
    known = known[np.linspace(0, len(known) - 1, min(most, len(known))).round().astype(int)]
    return Samples(features.reshape(-1, channels).numpy()[known], labels.ravel()[known], known // (height * width))


def _patch_labels(label_map: NDArray[Any], height: int, width: int) -> NDArray[np.int64]:
    """The label of more than half of each patch's pixels, int64 (height, width); ``IGNORED`` where there is none."""
    pixels = cv2.resize(label_map, (width * CELL, height * CELL), interpolation=cv2.INTER_NEAREST)
    cells = pixels.reshape(height, CELL, width, CELL).swapaxes(1, 2).reshape(height * width, CELL**2)
    counts = np.apply_along_axis(np.bincount, 1, cells, minlength=IGNORED + 1)
    clear = counts.max(1) > CELL**2 // 2
    return np.where(clear, counts.argmax(1), IGNORED).reshape(height, width)


def probe_scores(samples: Samples) -> Mapping[str, float]:
    """How well classes are told apart by features that stay as they are.

    Five parts of the images are each told by what the other four teach.

    Returns:
        The mean over classes of the share that is told right, in %: ``'k-NN'``, by the cosine of the nearest
        neighbours, and ``'linear'``, by logistic regression.
    """
    labels, counts = np.unique(samples.labels, return_counts=True)
    seen = np.isin(samples.labels, labels[counts >= FOLDS])
    features, known, images = samples.features[seen], samples.labels[seen], samples.images[seen]
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    ways = {
        "k-NN": KNeighborsClassifier(min(NEIGHBOURS, len(known) // FOLDS), metric="cosine", weights="distance"),
        "linear": make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000)),
    }
    scores = {}
    for name, way in ways.items():
        told = cross_val_predict(way, features, known, groups=images, cv=folds)
        scores[name] = 100 * float(balanced_accuracy_score(known, told))
    return scores
