"""How many objects and images each class of detection data has, and what is said of classes that have none."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT
from helpers.data_sets import edit_json, write_coco
from mmdet.datasets import CocoDataset
from mmengine.config import Config

from apla_mm.data.coco.check import check_annotations
from apla_mm.data.coco.object_counts import ObjectCounts
from apla_mm.data.reading import DataError
from apla_mm.options.command_line import build_runner

pytestmark = pytest.mark.slow

CLASSES = ("square", "disc")
SHARED = ROOT.parent / "shared/data"


def file_of(root: Path) -> Path:
    return root / "annotations/instances_train.json"


def counted(path: Path, classes: Any = CLASSES, **settings: Any) -> ObjectCounts:
    counts = ObjectCounts()
    check_annotations(str(path), classes, counts=counts, **settings)
    return counts


def leave(*categories: int) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        content["annotations"] = [a for a in content["annotations"] if a["category_id"] in categories]

    return change


def test_table_of_objects_and_images(coco_root: Path) -> None:
    counts = counted(file_of(coco_root))
    assert counts.summary(CLASSES) == (
        "4 images; 2 of 2 classes have objects\n"
        "class   label  objects  images\n"
        "square      0        4       4\n"
        "disc        1        4       4"
    )
    assert list(counts.suspicions(CLASSES)) == []


def test_a_class_without_an_object_is_suspicious_where_there_are_as_many_images_as_classes(coco_root: Path) -> None:
    edit_json(file_of(coco_root), leave(1))
    counts = counted(file_of(coco_root))
    assert counts.summary(CLASSES).startswith("4 images; 1 of 2 classes have objects, disc none\n")
    assert list(counts.suspicions(CLASSES)) == [
        "in 4 images no object is of the class disc: expected some of each of 2 classes; nothing learns to find it: "
        "correct the classes or the annotations"
    ]
    many = [*CLASSES, *"abc"]
    assert list(counts.suspicions(many)) == []


@pytest.mark.parametrize("change", [dict(iscrowd=1), dict(ignore=1), dict(area=0), dict(bbox=[3, 3, 0.5, 9])], ids=str)
def test_what_is_not_learned_is_no_object(coco_root: Path, change: dict[str, Any]) -> None:
    def spoil(content: dict) -> None:
        for annotation in content["annotations"]:
            if annotation["category_id"] == 2:
                annotation.update(change)

    edit_json(file_of(coco_root), spoil)
    assert counted(file_of(coco_root)).objects == dict(square=4)


def test_many_classes_are_told_by_the_rarest(coco_root: Path) -> None:
    names = [f"kind {i}" for i in range(30)]

    def change(content: dict) -> None:
        content["categories"] = [dict(id=i, name=name) for i, name in enumerate(names)]

    edit_json(file_of(coco_root), change)
    text = counted(file_of(coco_root), names).summary(names)
    assert text.splitlines()[0] == (
        "4 images; 2 of 30 classes have objects, kind 0, kind 3, kind 4, kind 5, kind 6 and 23 more none; the rarest "
        "of the others"
    )
    assert len(text.splitlines()) == 4


@pytest.mark.parametrize("seed", range(20))
def test_counts_are_of_what_mmdet_gives_in_training(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    path = file_of(write_coco(tmp_path))

    def change(content: dict) -> None:
        for image in content["images"]:
            image.update(draw.choice([{}, dict(width=640, height=480)]))
        for annotation in content["annotations"]:
            annotation.update(draw.choice([{}, {}, dict(ignore=1), dict(iscrowd=1), dict(area=0), dict(category_id=1)]))
        draw.shuffle(content["annotations"])
        content["annotations"] = content["annotations"][draw.randint(0, 6) :]

    edit_json(path, change)
    classes = draw.choice([CLASSES, ("disc",), ("square",)])
    filter_cfg = draw.choice([None, dict(filter_empty_gt=True, min_size=100), dict(filter_empty_gt=True)])
    indices = draw.choice([None, None, 2, -1, [0], [1, 0, 1]])
    settings: dict[str, Any] = dict(min_size=0, filter_empty=False)
    if filter_cfg:
        settings = dict(min_size=filter_cfg.get("min_size", 0), filter_empty=True)
    try:
        counts = counted(path, classes, indices=indices, **settings)
        dataset = CocoDataset(
            ann_file=str(path), data_prefix=dict(img=""), metainfo=dict(classes=classes), filter_cfg=filter_cfg,
            indices=indices,
        )  # fmt: skip
    except (DataError, IndexError):  # nothing to learn; an image that is not there
        return
    objects = {name: 0 for name in classes}
    seen = {dataset.get_data_info(i)["img_id"]: dataset.get_data_info(i) for i in range(len(dataset))}
    for info in seen.values():
        for instance in info["instances"]:
            objects[classes[instance["bbox_label"]]] += not instance["ignore_flag"]
    assert counts.read == len(seen)
    assert counts.objects == {name: n for name, n in objects.items() if n}


@pytest.mark.parametrize("early", [True, False], ids=["tools", "other tools"])
def test_training_says_which_classes_have_nothing(
    detection_config: Config, coco_root: Path, read_log: Callable[[], str], early: bool
) -> None:
    edit_json(file_of(coco_root), leave(2))
    edit_json(coco_root / "annotations/instances_val.json", leave(2))
    used = ("train_dataloader", "val_dataloader") if early else ()
    build_runner(detection_config, used).train()
    log = read_log()
    assert log.count("train_dataloader: in 4 images no object is of the class square: expected some") == 1
    assert log.count("train_dataloader: 4 images; 1 of 2 classes have objects, square none\n") == 1
    assert log.count("val_dataloader: 2 images; 1 of 2 classes have objects, square none\n") == 1
    assert "val_dataloader: in 2 images" not in log
    assert log.index("no object is of the class") < log.index("coco/bbox_mAP:")


def test_data_sets_of_one_loader_are_counted_together(
    detection_config: Config, coco_root: Path, read_log: Callable[[], str]
) -> None:
    other = coco_root / "annotations/discs.json"
    other.write_text(file_of(coco_root).read_text())
    edit_json(file_of(coco_root), leave(1))
    edit_json(other, leave(2))
    loader = detection_config.train_dataloader
    one = loader.dataset
    two = {**one, "ann_file": "annotations/discs.json"}
    loader.dataset = dict(type="ConcatDataset", datasets=[one, two])
    build_runner(detection_config, ("train_dataloader",))
    assert "train_dataloader: 8 images; 2 of 2 classes have objects\n" in read_log()
    assert "no object is of the class" not in read_log()


@pytest.mark.parametrize(
    ("name", "counts"),
    [("coco_sample/annotations/instances_train2017.json", 41), ("animals/annotations/instances_train.json", 7)],
)
def test_genuine_data_raise_no_warning(name: str, counts: int) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    classes = [category["name"] for category in json.loads(path.read_text())["categories"]]
    found = counted(path, classes, min_size=32, filter_empty=True)
    assert list(found.suspicions(classes)) == []
    assert f"; {counts} of {len(classes)} classes have objects" in found.summary(classes)
