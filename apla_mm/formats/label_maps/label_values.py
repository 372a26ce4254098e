"""The labels that label maps hold, and label maps that cannot be learned from."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import numpy as np
from PIL import Image

from ...data.reading import DataError, check_evenly
from ..files import Files

_CONVERT = "save one channel of class indices (0, 1, ...) for each"


@dataclass
class LabelValues:
    """What is in all label maps.

    Attributes:
        pixels: Label -> how many pixels have it.
        example: Label -> the path of one that has it.
        most: The most labels in one, and its path.
        deep: Paths of those of more than 8 bits.
    """

    pixels: Counter[int] = field(default_factory=Counter)
    example: dict[int, str] = field(default_factory=dict)
    most: tuple[int, str] = (0, "")
    deep: list[str] = field(default_factory=list)

    @property
    def labels(self) -> list[int]:
        """All labels, sorted."""
        return sorted(self.pixels)


def read_labels(files: Files, paths: Sequence[str], indexed: Mapping[str, str]) -> LabelValues:
    """Read all label maps.

    Args:
        files: The files.
        paths: Label maps among them.
        indexed: Of those in colour, the file that was made of each, which is read in its place.

    Raises:
        DataError: One cannot be read, is in colour, saved with loss, or has labels of more than 8 bits.
    """
    values, lock = LabelValues(), Lock()

    def look(path: str) -> None:
        counts, deep = _labels(indexed.get(path) or files.full(path))
        labels = list(counts)
        with lock:
            values.pixels.update(counts)
            for label in labels:
                values.example[label] = min(path, values.example.get(label, path))
            values.most = max(values.most, (len(labels), path))
            if deep:
                values.deep.append(path)

    check_evenly(paths, look, None)
    return values


def _labels(path: str) -> tuple[dict[int, int], bool]:
    """How many pixels each label has, and whether the file has more than 8 bits."""
    try:
        with Image.open(path) as image:
            kind, mode = image.format, image.mode
            array = np.asarray(image)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"the label map '{path}' cannot be read: {error}") from error
    if kind == "JPEG":
        raise DataError(
            f"the label map '{path}' is a JPEG, which changes labels at edges: expected PNG; make the label maps again "
            "from their source, as what was lost does not come back"
        )
    if array.ndim != 2:
        raise DataError(_in_colour(path, mode, array))
    if array.dtype.kind == "f":
        raise DataError(f"the label map '{path}' holds fractions ({mode}): expected integers from 0 to 255")
    if array.dtype == bool or array.dtype == np.uint8:
        counts = np.bincount(array.astype(np.uint8).ravel())
        found = np.flatnonzero(counts)
        counts = counts[found]
    else:
        found, counts = np.unique(array, return_counts=True)
    labels = found.astype(np.int64).tolist()
    if labels[-1] > 255 or labels[0] < 0:
        wrong = next(label for label in labels if not 0 <= label <= 255)
        raise DataError(
            f"the label map '{path}' holds the label {wrong:,}, of {len(labels):,}: mmseg reads 8 bits, the labels 0 "
            "to 255. If these are objects' ids, use the label maps of classes; else number the classes from 0 on"
        )
    return dict(zip(labels, counts.tolist(), strict=True)), array.dtype.itemsize > 1


def _in_colour(path: str, mode: str, array: np.ndarray) -> str:
    colours = array.reshape(-1, array.shape[-1])
    if array.shape[-1] > 2 and (colours[:, :3] == colours[:, :1]).all():
        return f"the label map '{path}' has {array.shape[-1]} channels ({mode}), which are equal: {_CONVERT}"
    found, counts = np.unique(colours, axis=0, return_counts=True)
    order = np.argsort(-counts)[:8]
    shown = ", ".join(f"({', '.join(map(str, found[i].tolist()))})" for i in order)
    more = f" and {len(found) - len(order):,} more" if len(found) > len(order) else ""
    return (
        f"the label map '{path}' is in colour ({mode}), with the colours {shown}{more}: {_CONVERT}, such as 0 for the "
        "first colour and 1 for the second; or add a file class_dict.csv with the columns name, r, g, b"
    )
