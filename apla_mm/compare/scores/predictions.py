"""What each method predicts of the same test images, side by side."""

import json
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


def boxes_figure(annotations: Path, images: Sequence[Path], files: Mapping[str, Path], least: float = 0.3) -> Any:
    """Images in rows, with their boxes and those of each method beside them.

    Args:
        annotations: COCO's file.
        images: Paths of some of its images.
        files: Method to the file of its boxes, as ``CocoMetric`` writes them.
        least: Score of a box that is drawn.

    Returns:
        A figure of matplotlib's.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    truth = json.loads(annotations.read_text())
    ids = {Path(image["file_name"]).name: image["id"] for image in truth["images"]}
    names = {category["id"]: category["name"] for category in truth["categories"]}
    found = {"truth": [{**each, "score": 1.0} for each in truth["annotations"]]}
    found |= {method: json.loads(file.read_text()) for method, file in files.items()}
    figure = Figure(figsize=(2.5 * len(found), 2.5 * len(images)))
    axes = figure.subplots(len(images), len(found), squeeze=False)
    for row, image in zip(axes, images, strict=True):
        for place, (method, boxes) in zip(row, found.items(), strict=True):
            place.imshow(Image.open(image).convert("RGB"))
            place.set_title(method, fontsize=7)
            place.axis("off")
            for box in boxes:
                if box["image_id"] == ids[image.name] and box["score"] >= least:
                    x, y, width, height = box["bbox"]
                    colour = f"C{box['category_id'] % 10}"
                    place.add_patch(Rectangle((x, y), width, height, fill=False, edgecolor=colour))
                    place.text(x, y, f"{names[box['category_id']]} {box['score']:.2f}", fontsize=5, color=colour)
    return figure
