"""Copies of small data sets in other formats."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from mmdet.datasets import CocoDataset
from mmseg.datasets import BaseSegDataset
from PIL import Image

SPLITS = dict(train="training", val="validation")


def seg_samples(root: Path, split: str) -> list[tuple[Any, Any]]:
    """Images and label maps in ADE20K's layout, read by mmseg."""
    prefix = dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}")
    return read_seg(
        BaseSegDataset(data_root=str(root), data_prefix=prefix, pipeline=SEG_PIPELINE, serialize_data=False)
    )


SEG_PIPELINE = [dict(type="LoadImageFromFile"), dict(type="mmseg.LoadAnnotations")]


def read_seg(dataset: BaseSegDataset) -> list[tuple[Any, Any]]:
    samples = [dataset[i] for i in range(len(dataset))]
    return [(sample["img"], sample["gt_seg_map"]) for sample in samples]


def copy_seg(
    scenes: Path, image: Callable[[str, str], str], label_map: Callable[[str, str], str], root: Path, **save: Any
) -> Path:
    """Scenes in ADE20K's layout under other names.

    Args:
        scenes: Where they are.
        image: The path of an image of a split and a name, without its suffix.
        label_map: That of its label map, with its suffix.
        root: Where to.
        save: Of Pillow, for label maps.
    """
    for split, folder in SPLITS.items():
        for path in sorted((scenes / "images" / folder).iterdir()):
            target, mapped = root / f"{image(split, path.stem)}.jpg", root / label_map(split, path.stem)
            for one in (target, mapped):
                one.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target)
            with Image.open(scenes / "annotations" / folder / f"{path.stem}.png") as labels:
                labels.save(mapped, **save)
    return root


def copy_voc_seg(scenes: Path, root: Path) -> Path:
    """Scenes in Pascal VOC's folders, with its lists, and maps of objects beside."""
    for kind in ("SegmentationClass", "SegmentationObject"):
        copy_seg(scenes, lambda s, n: f"JPEGImages/{s}_{n}", lambda s, n, k=kind: f"{k}/{s}_{n}.png", root)
    write_lists(root, "Segmentation", {s: [f"{s}_{p.stem}" for p in _images(scenes, f)] for s, f in SPLITS.items()})
    return root


def _images(scenes: Path, folder: str) -> list[Path]:
    return sorted((scenes / "images" / folder).iterdir())


def write_lists(root: Path, kind: str, names: dict[str, list[str]]) -> None:
    """Pascal VOC's lists of splits."""
    folder = root / "ImageSets" / kind
    folder.mkdir(parents=True)
    for split, ones in names.items():
        (folder / f"{split}.txt").write_text("".join(f"{name}\n" for name in ones))


def read_det(dataset: CocoDataset) -> dict[str, list[tuple[Any, ...]]]:
    """What mmdet makes of each image: name, size, and each object's class, box and mark."""
    classes = dataset.metainfo["classes"]
    return {
        Path(one["img_path"]).name: sorted(
            (classes[i["bbox_label"]], *(round(v, 2) for v in i["bbox"]), i["ignore_flag"]) for i in one["instances"]
        )
        for one in (dataset.get_data_info(i) for i in range(len(dataset)))
    }


def copy_yolo(
    coco: Path, root: Path, polygons: Callable[[int], bool] = lambda i: False, described: bool = True
) -> Path:
    """A data set of write_coco in YOLO's format, crowds left out.

    Args:
        coco: Where it is.
        root: Where to.
        polygons: Whether an object of a number has a polygon; others have boxes.
        described: With data.yaml.
    """
    for split in ("train", "val"):
        content = json.loads((coco / f"annotations/instances_{split}.json").read_text())
        for kind in ("images", "labels"):
            (root / kind / split).mkdir(parents=True, exist_ok=True)
        for image in content["images"]:
            shutil.copy(coco / "images" / image["file_name"], root / "images" / split)
            lines = []
            for i, one in enumerate(a for a in content["annotations"] if a["image_id"] == image["id"]):
                if one["iscrowd"]:
                    continue
                x, y, w, h = one["bbox"]
                values = [(x + w / 2) / 64, (y + h / 2) / 48, w / 64, h / 48]
                if polygons(i):
                    values = [v / (48 if k % 2 else 64) for k, v in enumerate(one["segmentation"][0])]
                lines.append(" ".join([str(one["category_id"] - 1), *(f"{v:.8f}" for v in values)]))
            (root / "labels" / split / f"{Path(image['file_name']).stem}.txt").write_text("\n".join(lines))
    if described:
        names = {i: category["name"] for i, category in enumerate(content["categories"])}
        text = yaml.safe_dump(dict(path="../elsewhere", train="images/train", val="images/val", names=names))
        (root / "data.yaml").write_text(text)
    return root


def copy_voc(coco: Path, root: Path, lists: bool = True) -> Path:
    """A data set of write_coco in Pascal VOC's format, with boxes of whole pixels, and crowds marked difficult."""
    (root / "Annotations").mkdir(parents=True)
    names: dict[str, list[str]] = {}
    for split in ("train", "val"):
        content = json.loads((coco / f"annotations/instances_{split}.json").read_text())
        kinds = {category["id"]: category["name"] for category in content["categories"]}
        for image in content["images"]:
            stem = Path(image["file_name"]).stem
            names.setdefault(split, []).append(stem)
            (root / "JPEGImages").mkdir(exist_ok=True)
            shutil.copy(coco / "images" / image["file_name"], root / "JPEGImages")
            objects = [a for a in content["annotations"] if a["image_id"] == image["id"]]
            parts = "".join(_voc_object(kinds[one["category_id"]], one) for one in objects)
            size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
            text = f"<annotation>\n<filename>{image['file_name']}</filename>\n{size}\n{parts}</annotation>\n"
            (root / "Annotations" / f"{stem}.xml").write_text(text)
    if lists:
        write_lists(root, "Main", names)
    return root


def _voc_object(name: str, one: dict[str, Any]) -> str:
    x, y, w, h = (int(value) for value in one["bbox"])
    corners = dict(xmin=x + 1, ymin=y + 1, xmax=x + w, ymax=y + h)
    box = "".join(f"<{key}>{value}</{key}>" for key, value in corners.items())
    difficult = f"<difficult>{one['iscrowd']}</difficult>"
    return f"<object>\n<name>{name}</name>{difficult}\n<bndbox>{box}</bndbox>\n</object>\n"
