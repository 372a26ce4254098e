"""Panoptic annotation files and maps: what mmdet reads, and what is refused before it does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import edit_json, write_panoptic
from mmdet.datasets import CocoPanopticDataset
from PIL import Image

from apla_mm.data.coco.panoptic_check import PanopticMap, check_maps, check_panoptic_file, is_panoptic
from apla_mm.data.coco.panoptic_file import PanopticFile
from apla_mm.data.reading import DataError

META: dict[str, Any] = dict(
    classes=("square", "disc", "ground"), thing_classes=("square", "disc"), stuff_classes=("ground",)
)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_panoptic(tmp_path_factory.mktemp("panoptic"))


@pytest.fixture
def train(written: Path, tmp_path: Path) -> Path:
    path = tmp_path / "panoptic_train.json"
    path.write_text((written / "annotations/panoptic_train.json").read_text())
    return path


def test_a_file_in_order_is_said_to_be_and_is_what_mmdet_reads(written: Path) -> None:
    path = str(written / "annotations/panoptic_train.json")
    said = check_panoptic_file(path, META, truths=[path])
    assert said == "4 images, 8 segments of 2 kinds of things, 1 crowds, 4 segments of 1 kinds of stuff"
    dataset = CocoPanopticDataset(
        ann_file=path, metainfo=META, data_prefix=dict(img=f"{written}/images/", seg=f"{path[:-5]}/"), pipeline=[]
    )
    assert is_panoptic(type(dataset)) and not is_panoptic(CocoPanopticDataset.__mro__[1])
    segments = PanopticFile(path).segments
    for i in range(4):
        info = dataset.get_data_info(i)
        assert {s["id"] for s in info["segments_info"]} == {s["id"] for s in segments[info["img_id"]]}
        ids = frozenset(s["id"] for s in segments[info["img_id"]])
        assert check_maps([PanopticMap(info["seg_map_path"], ids, (info["width"], info["height"]))], None) == 1


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda c: c.pop("categories"), "expected an object with the lists images, annotations, categories"),
        (lambda c: c.update(images=[]), "lists no images"),
        (lambda c: c["categories"][0].pop("isthing"), r"categories\[0\] has the isthing None: expected 'isthing'"),
        (lambda c: c["images"].append(c["images"][0]), "two images have the id 10"),
        (lambda c: c["categories"][1].update(name="square"), "two categories have the name 'square'"),
        (lambda c: c["annotations"].pop(2), "no annotation of 1 of 4 images, scene_2.jpg"),
        (lambda c: c["annotations"].append(c["annotations"][0]), r"annotations\[4\] is the second one of the image 10"),
        (lambda c: c["annotations"][1].update(image_id=77), r"annotations\[1\] is of the image 77"),
        (
            lambda c: c["annotations"][0].update(file_name="a.png"),
            "names the map 'a.png', and of .*reads 'scene_0.png'",
        ),
        (lambda c: c["images"][0].update(file_name="scene_0.jpeg"), "images must be '\\*.jpg'"),
        (lambda c: segment(c).pop("iscrowd"), r"segments_info\[1\] has the iscrowd None"),
        (lambda c: segment(c).update(category_id=5), "of the category 5, which 'categories' does not list"),
        (lambda c: segment(c).update(id=1), r"two annotations\[0\].segments_info have the id 1"),
        (lambda c: segment(c).update(id=256**3), r"expected 1 to 256\*\*3 - 1"),
        (
            lambda c: c["categories"][0].update(isthing=0),
            "says that 'square' is stuff, and the config that it is a thing",
        ),
        (lambda c: c["categories"].reverse(), "label 0 would be 'ground' and be called 'square'"),
        (lambda c: c["categories"][1].update(name="ring"), "has no category for disc; its things are 'square', 'ring'"),
        (
            lambda c: (c["categories"].append(dict(id=3, name="sky", isthing=0)), segment(c).update(category_id=3)),
            "has segments of 'sky', which is none of the classes",
        ),
    ],
)
def test_a_file_that_is_not_in_order_is_named_with_what_is_wrong(
    train: Path, change: Callable[[dict], object], expected: str
) -> None:
    edit_json(train, change)
    with pytest.raises(DataError, match=expected) as caught:
        check_panoptic_file(str(train), META)
    assert str(train) in str(caught.value)


def segment(content: dict) -> dict:
    return content["annotations"][0]["segments_info"][1]


def test_classes_that_are_not_things_with_stuff_behind_are_refused(train: Path) -> None:
    with pytest.raises(DataError, match="are not the things 'square', 'disc' with the stuff 'ground' behind"):
        check_panoptic_file(str(train), {**META, "classes": ("ground", "square", "disc")})


@pytest.mark.parametrize(("kind", "cure"), [(1, "score label maps"), (0, "score instances")])
def test_nothing_to_score_of_things_or_stuff_is_refused(train: Path, kind: int, cure: str) -> None:
    def leave_out(content: dict) -> None:
        ids = {c["id"] for c in content["categories"] if c["isthing"] == kind}
        for annotation in content["annotations"]:
            annotation["segments_info"] = [s for s in annotation["segments_info"] if s["category_id"] not in ids]

    edit_json(train, leave_out)
    check_panoptic_file(str(train), META)  # as training data they are fine
    with pytest.raises(DataError, match=cure):
        check_panoptic_file(str(train), META, truths=[str(train)])


def test_scored_by_a_file_without_its_images_is_refused(written: Path, train: Path) -> None:
    other = str(written / "annotations/panoptic_val.json")
    with pytest.raises(DataError, match=f"'{other}', which predictions are scored by, lacks the images scene_0.jpg"):
        check_panoptic_file(str(train), META, truths=[other])


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda p: p.unlink(), "cannot be read"),
        (lambda p: Image.open(p).convert("L").save(p), "is uint8 with 1 channels: expected RGB of 8 bits"),
        (lambda p: Image.open(p).resize((32, 24)).save(p), "has 32 x 24 pixels and its image 64 x 48"),
        (lambda p: dot(p, (7, 0, 0)), "has the segments 7, which it does not list"),
        (lambda p: dot(p, (1, 0, 0), everywhere=True), "has no pixel of 1000, 2000"),
    ],
)
def test_a_map_that_is_not_the_files_is_named(tmp_path: Path, spoil: Callable[[Path], object], expected: str) -> None:
    root = write_panoptic(tmp_path)
    path = root / "annotations/panoptic_train/scene_1.png"
    content = json.loads((root / "annotations/panoptic_train.json").read_text())
    ids = frozenset(s["id"] for s in content["annotations"][1]["segments_info"])
    spoil(path)
    with pytest.raises(DataError, match=expected) as caught:
        check_maps([PanopticMap(str(path), ids, (64, 48))], None)
    assert str(path) in str(caught.value)


def dot(path: Path, colour: tuple[int, int, int], everywhere: bool = False) -> None:
    pixels = np.array(Image.open(path))
    pixels[: 48 if everywhere else 1, : 64 if everywhere else 1] = colour
    Image.fromarray(pixels).save(path)
