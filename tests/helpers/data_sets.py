"""Small data sets: in COCO's format, in ADE20K's layout, in folders of classes, and in memory."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch.utils.data import Dataset


class Noise(Dataset):
    """Images of noise, with labels 0, 1, 2, 0, ..."""

    def __init__(self, count: int = 8, size: int = 32, **metainfo: Any) -> None:
        self.count, self.size, self.metainfo = count, size, metainfo

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(i)
        return dict(inputs=torch.randn(3, self.size, self.size, generator=generator), labels=i % 3)


def write_scenes(root: Path, training: int = 3, validation: int = 2, first: int = 0) -> Path:
    """A data set in ADE20K's layout, of two classes.

    Images have 48 x 40 pixels; the left half is of the label first, the right one of the next, and the first row is
    ignored.
    """
    labels = np.full((40, 48), first, np.uint8)
    labels[:, 24:], labels[0] = first + 1, 255
    for split, count in (("training", training), ("validation", validation)):
        for i in range(count):
            colours = np.random.default_rng(i).integers(0, 255, (5, 6, 3), dtype=np.uint8)
            _write_sample(root, split, f"scene_{i}", Image.fromarray(colours).resize((48, 40)), labels)
    return root


def write_class_folders(root: Path, training: int = 4, validation: int = 2) -> Path:
    """Images of 40 x 32 pixels in ``train/CLASS`` and ``val/CLASS``: 'dark', 'light' and 'red' ones, of noise."""
    colours = dict(dark=(40, 40, 40), light=(210, 210, 210), red=(220, 30, 30))
    for split, count in (("train", training), ("val", validation)):
        for label, (name, colour) in enumerate(colours.items()):
            (root / split / name).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                generator = np.random.default_rng([label, i, len(split)])
                noise = generator.integers(-30, 30, (8, 10, 3)) + np.array(colour)
                image = Image.fromarray(noise.clip(0, 255).astype(np.uint8)).resize((40, 32))
                image.save(root / split / name / f"{i}.jpg", quality=95)
    return root


def write_photos(root: Path) -> Path:
    """Parts of two photos in ADE20K's layout, with the bright pixels as one class and the first two rows ignored."""
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    boxes = [(0, 0, 420, 420), (200, 0, 620, 420), (100, 0, 420, 320), (220, 100, 540, 420)]
    for split, photos in (("training", (china, flower)), ("validation", (china[:, ::-1],))):
        for i, photo in enumerate(photos):
            for j, box in enumerate(boxes):
                part = Image.fromarray(photo).crop(box).resize((72, 64))
                labels = (np.asarray(part).mean(-1) > 110).astype(np.uint8)
                assert 0.1 < labels.mean() < 0.9
                labels[:2] = 255
                _write_sample(root, split, f"{i}_{j}", part, labels)
    return root


def _write_sample(root: Path, split: str, name: str, image: Image.Image, labels: np.ndarray) -> None:
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    image.save(root / f"images/{split}/{name}.jpg", quality=95)
    Image.fromarray(labels).save(root / f"annotations/{split}/{name}.png")


def write_coco(root: Path) -> Path:
    """A data set in COCO's format, of the classes 'square' and 'disc', with boxes and masks.

    Its images, ``images/scene_0.jpg`` to ``scene_5.jpg``, have 64 x 48 pixels. The first four are listed in
    ``annotations/instances_train.json``, the others in ``instances_val.json``. Image ids start at 10, annotation ids
    at 100, category ids at 1. The first image also has a crowd of squares.
    """
    for folder in ("images", "annotations"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, scenes in (("train", range(4)), ("val", range(4, 6))):
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for scene in scenes:
            image, shapes = _draw_shapes(scene)
            name = f"scene_{scene}.jpg"
            image.save(root / "images" / name)
            images.append(dict(id=10 + scene, file_name=name, width=64, height=48))
            for shape in shapes:
                annotations.append(dict(id=100 + len(annotations), image_id=10 + scene, **shape))
        categories = [dict(id=1, name="square"), dict(id=2, name="disc")]
        content = dict(images=images, annotations=annotations, categories=categories)
        (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
    return root


def write_panoptic(root: Path) -> Path:
    """What :func:`write_coco` writes, as things, with the ground as stuff, in panoptic files too.

    The files are ``annotations/panoptic_train.json`` and ``panoptic_val.json``, each with a folder of maps. They are
    made here by themselves, so that what makes and reads them can be compared. Square and disc do not overlap.
    """
    write_coco(root)
    for split in ("train", "val"):
        content = json.loads((root / f"annotations/instances_{split}.json").read_text())
        folder = root / f"annotations/panoptic_{split}"
        folder.mkdir()
        annotations = []
        for image in content["images"]:
            shapes = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            ids = Image.new("I", (64, 48), 1)
            draw = ImageDraw.Draw(ids)
            segments = [dict(id=1, category_id=9, iscrowd=0)]
            for i, shape in enumerate(sorted(shapes, key=lambda one: -one["iscrowd"])):
                key = 1000 * (i + 1)  # of more than 8 bits
                x, y, w, h = shape["bbox"]
                (draw.ellipse if shape["category_id"] == 2 else draw.rectangle)((x, y, x + w - 1, y + h - 1), fill=key)
                segments.append(dict(id=key, category_id=shape["category_id"], iscrowd=shape["iscrowd"]))
            array = np.asarray(ids)
            for segment in segments:
                rows, columns = np.nonzero(array == segment["id"])
                left, top = int(columns.min()), int(rows.min())
                box = [left, top, int(columns.max()) + 1 - left, int(rows.max()) + 1 - top]
                segment.update(bbox=box, area=len(rows))
            colours = np.stack([array % 256, array // 256 % 256, array // 256**2], -1).astype(np.uint8)
            name = image["file_name"].replace(".jpg", ".png")
            Image.fromarray(colours).save(folder / name)
            annotations.append(dict(image_id=image["id"], file_name=name, segments_info=segments))
        kinds = [dict(id=1, name="square", isthing=1), dict(id=2, name="disc", isthing=1)]
        kinds.append(dict(id=9, name="ground", isthing=0))
        panoptic = dict(images=content["images"], annotations=annotations, categories=kinds)
        (root / f"annotations/panoptic_{split}.json").write_text(json.dumps(panoptic))
    return root


def _draw_shapes(scene: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """An image of a square and a disc, in the first also of a crowd, and their annotations."""
    noise = np.random.default_rng(scene).integers(0, 120, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((64, 48))
    draw = ImageDraw.Draw(image)
    x, y, side = 3 + 2 * scene, 5 + scene, 18
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=(230, 60, 40))
    radius, centre = 10, np.array([46.0 - scene, 30.0 - scene])
    draw.ellipse([*(centre - radius), *(centre + radius)], fill=(60, 210, 230))
    angles = np.arange(16) * np.pi / 8
    circle = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    square = [x, y, x + side, y, x + side, y + side, x, y + side]
    shapes = [
        dict(category_id=1, bbox=[x, y, side, side], area=side**2, iscrowd=0, segmentation=[square]),
        dict(
            category_id=2,
            bbox=[*(centre - radius), 2 * radius, 2 * radius],
            area=3.06 * radius**2,
            iscrowd=0,
            segmentation=[circle.round(2).ravel().tolist()],
        ),
    ]
    if scene == 0:
        draw.rectangle((0, 40, 63, 47), fill=(230, 60, 40))
        # counts go down the columns: 40 pixels outside, 8 inside, 64 times
        crowd = dict(size=[48, 64], counts=[40, 8] * 64)
        shapes.append(dict(category_id=1, bbox=[0, 40, 64, 8], area=512, iscrowd=1, segmentation=crowd))
    return image, shapes


def edit_json(path: Path, change: Callable[[dict], object]) -> None:
    """Changes an annotation file's content."""
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
