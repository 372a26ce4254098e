"""What each method predicts of the same test images, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Labels = NDArray[np.int64]


def label_map_of(folder: Path, image: str) -> Labels | None:
    """The label map that a test wrote for an image, (H, W); None if there is none.

    Args:
        folder: What ``test.py --out`` was given.
        image: The image's path: of files of one name, that is taken whose folders are the image's too.
    """
    parts = Path(image).with_suffix("").parts
    found = [file for file in folder.rglob(f"{Path(image).stem}.png")]

    def alike(file: Path) -> int:
        own = file.with_suffix("").relative_to(folder).parts
        return len(own) if parts[-len(own) :] == own else 0

    best = max(found, key=alike, default=None)
    return None if best is None else _opened(str(best))


def _opened(file: str) -> Labels | None:
    return np.asarray(Image.open(file)).astype(np.int64) if Path(file).is_file() else None


def predictions_figure(images: Sequence[tuple[str, str]], folders: Mapping[str, Path], classes: int) -> Any:
    """Images in rows, with their label maps and those of each method beside them.

    Args:
        images: Paths of each and of its label map.
        folders: Method to the folder of its label maps.
        classes: How many there are, for the colours.

    Returns:
        A figure of matplotlib's.
    """
    from matplotlib.figure import Figure

    columns = 2 + len(folders)
    figure = Figure(figsize=(2 * columns, 2 * len(images)))
    axes = figure.subplots(len(images), columns, squeeze=False)
    for row, (image, label) in zip(axes, images, strict=True):
        row[0].imshow(Image.open(image).convert("RGB"))
        maps = [_opened(label), *(label_map_of(folder, image) for folder in folders.values())]
        for place, found in zip(row[1:], maps, strict=True):
            if found is not None:
                place.imshow(found, cmap="tab20", vmin=0, vmax=max(20, classes), interpolation="nearest")
    for place, title in zip(axes[0], ("image", "label map", *folders), strict=True):
        place.set_title(title, fontsize=7)
    for place in axes.flat:
        place.axis("off")
    return figure
