"""Panoptic files in COCO's format, made of annotated objects and, for stuff, of label maps."""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import numpy as np
from pycocotools import mask as coco_mask

from ..data.coco.check import check_annotations
from ..data.coco.file import CocoFile
from ..data.reading import DataError, read_image
from ..delta.atomic_file import write_atomic

#: a mask (H, W), the category's id, and whether it is a crowd
_Layer = tuple[np.ndarray, int, int]


def make_panoptic(
    objects: Path,
    out: Path,
    rest: str | None = None,
    label_maps: Path | None = None,
    stuff: Mapping[str, int] | None = None,
) -> str:
    """Write ``out`` and, in a folder of its name, a map of segments for each image.

    Where objects overlap the smaller one is on top, and crowds are below all. Of stuff there are the labels of label
    maps, where no object is.

    Args:
        objects: Annotation file with masks, in COCO's format.
        out: ``*.json``, new.
        rest: The class of stuff that all other pixels are; None leaves them without one.
        label_maps: Folder with a PNG of labels for each image, of its name.
        stuff: Name of a class of stuff to its label there.

    Returns:
        What was written, and what was not.

    Raises:
        DataError: The objects or label maps are not in order.
        FileExistsError: Something is there already.
        ValueError: Names of classes are not distinct, or there is no stuff.
    """
    stuff = dict(stuff or {})
    maps = out.with_suffix("")
    for path in (out, maps):
        if path.exists():
            raise FileExistsError(f"'{path}' is there already: name another file")
    if out.suffix != ".json":
        raise ValueError(f"'{out}' must end in .json; its maps get the name without it")
    file = CocoFile(str(objects))
    check_annotations(str(objects), file.names, masks=True)
    names = [*file.names, *stuff, *filter(None, [rest])]
    if len(names) == len(file.names):
        raise ValueError(
            "panoptic files have stuff too, and none is named: give --rest NAME, the class of all other pixels, or "
            "--label-maps FOLDER with --stuff NAME=LABEL"
        )
    if len(set(names)) != len(names):
        raise ValueError(
            f"stuff needs names that things have not: things are {file.names}, stuff {names[len(file.names) :]}"
        )
    free = 1 + max((category["id"] for category in file.categories), default=0)
    categories = [dict(category, isthing=1) for category in file.categories]
    categories += [dict(id=free + i, name=name, isthing=0) for i, name in enumerate(names[len(categories) :])]
    ids_of = [category["id"] for category in categories]
    of_image: dict[int, list[tuple[Any, int]]] = defaultdict(list)
    for annotation, i, category in zip(file.annotations, file.image.tolist(), file.category.tolist(), strict=True):
        of_image[i].append((annotation, ids_of[category]))
    stuff_ids = ids_of[len(file.names) :]
    out.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=out.parent, prefix=f"{maps.name}.") as unfinished:
        annotations, hidden = [], 0
        for i, image in enumerate(file.images):
            if not image["file_name"].endswith((".jpg", ".png")):
                raise DataError(f"mmdet reads panoptic maps of '*.jpg' and '*.png', not of '{image['file_name']}'")
            name = str(Path(image["file_name"]).with_suffix(".png"))
            layers = []
            if rest is not None:
                layers.append((np.ones((int(image["height"]), int(image["width"])), bool), stuff_ids[-1], 0))
            if label_maps is not None:
                labels = _labels(label_maps / name, image)
                layers += [(labels == label, key, 0) for label, key in zip(stuff.values(), stuff_ids, strict=False)]
            ids, segments = _painted(image, [*layers, *_objects(image, of_image[i])])
            hidden += len(of_image[i]) - sum(s["category_id"] not in stuff_ids for s in segments)
            annotations.append(dict(image_id=image["id"], file_name=name, segments_info=segments))
            _write_map(Path(unfinished) / "maps" / name, ids)
        (Path(unfinished) / "maps").rename(maps)
    content = dict(images=file.images, annotations=annotations, categories=categories)
    write_atomic(json.dumps(content).encode(), out)
    count = sum(len(a["segments_info"]) for a in annotations)
    return f"{out}: {len(annotations)} images, {count} segments; {hidden} objects lie wholly below others"


def _write_map(path: Path, ids: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    colours = np.stack([ids // 256**2, ids // 256 % 256, ids % 256], -1).astype(np.uint8)  # OpenCV's order
    if not cv2.imwrite(str(path), colours):
        raise OSError(f"'{path}' cannot be written")


def _labels(path: Path, image: Mapping[str, Any]) -> np.ndarray:
    labels = read_image(str(path), "label map", flag="unchanged", backend="cv2")
    if labels.shape != (image["height"], image["width"]):
        raise DataError(
            f"the label map '{path}' is {labels.shape}: expected one channel of {image['height']} x {image['width']}"
        )
    return labels


def _objects(image: Mapping[str, Any], objects: Sequence[tuple[Mapping[str, Any], int]]) -> Iterator[_Layer]:
    """Crowds, then objects from the largest to the smallest."""
    size = int(image["height"]), int(image["width"])
    layers = [(_mask(one["segmentation"], *size), key, int(bool(one.get("iscrowd")))) for one, key in objects]
    yield from sorted(layers, key=lambda layer: (-layer[2], -layer[0].sum()))


def _painted(image: Mapping[str, Any], layers: Sequence[_Layer]) -> tuple[np.ndarray, list[dict[str, Any]]]:
    """A map of ids (H, W), where later layers lie on earlier ones, and what each id is."""
    ids = np.zeros((int(image["height"]), int(image["width"])), np.int64)
    for i, (mask, _, _) in enumerate(layers):
        ids[mask] = i + 1
    segments = []
    for key in np.unique(ids[ids > 0]).tolist():
        _, category_id, crowd = layers[key - 1]
        seen = ids == key
        box = list(cv2.boundingRect(seen.astype(np.uint8)))
        segments.append(dict(id=key, category_id=category_id, iscrowd=crowd, bbox=box, area=int(seen.sum())))
    return ids, segments


def _mask(segmentation: Any, height: int, width: int) -> np.ndarray:
    """A mask (H, W) of polygons or run lengths."""
    if isinstance(segmentation, list):
        polygons = [one for one in segmentation if len(one) >= 6 and len(one) % 2 == 0]  # as mmdet takes them
        runs = coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))
    elif isinstance(segmentation["counts"], list):
        runs = coco_mask.frPyObjects(segmentation, height, width)
    else:
        runs = segmentation
    return coco_mask.decode(runs).astype(bool)
