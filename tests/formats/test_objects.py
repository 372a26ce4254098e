import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_formats import copy_voc, copy_yolo, read_det
from helpers.data_sets import edit_json, write_coco
from mmdet.datasets import CocoDataset
from mmdet.structures.mask import PolygonMasks
from mmengine.registry import DATASETS

from apla_mm.data.coco.check import check_annotations
from apla_mm.data.reading import DataError
from apla_mm.formats import FoundData, find_data

CLASSES = ("square", "disc")


def original(coco: Path, split: str, folder: str = "images", classes: Any = CLASSES) -> dict[str, Any]:
    return read_det(
        CocoDataset(
            ann_file=str(coco / f"annotations/instances_{split}.json"),
            data_prefix=dict(img=str(coco / folder)),
            metainfo=dict(classes=classes),
            serialize_data=False,
        )
    )


def dataset(found: FoundData, split: str) -> Any:
    return DATASETS.build(dict(found.dataset(split), serialize_data=False, _scope_="mmdet"))


def assert_files(found: FoundData) -> None:
    """The images are there, and the annotation files in order."""
    for split in ("train", "val"):
        built = dataset(found, split)
        for i in range(len(built)):
            assert Path(built.get_data_info(i)["img_path"]).is_file()
        file = found.dataset(split)["ann_file"]
        check_annotations(
            file, found.classes, masks=found.masks, truths=[found.evaluator()["ann_file"]][split == "train" :]
        )


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "shapes")


def objects(content: dict[str, Any], crowds: bool = True) -> dict[str, Any]:
    return {name: [one for one in ones if crowds or not one[-1]] for name, ones in content.items()}


def test_coco_is_read_as_it_is(coco: Path, tmp_path: Path) -> None:
    found = find_data(coco, "det", tmp_path / "made")
    assert (found.format, found.classes, found.masks) == ("COCO's format", CLASSES, True)
    assert found.dataset("train")["ann_file"] == str(coco / "annotations/instances_train.json")
    assert found.evaluator()["metric"] == ["bbox", "segm"]
    assert not (tmp_path / "made").exists()
    for split in ("train", "val"):
        assert read_det(dataset(found, split)) == original(coco, split)
    assert_files(found)


def test_coco_is_found_by_content_and_its_images_wherever_they_lie(coco: Path, tmp_path: Path) -> None:
    root = tmp_path / "odd"
    for split in ("train", "valid"):
        source = coco / f"annotations/instances_{split[:5].removesuffix('id')}.json"
        (root / split).mkdir(parents=True)
        shutil.copy(source, root / split / "_annotations.coco.json")
        for i, image in enumerate(json.loads(source.read_text())["images"]):
            folder = root / split / ("deep" if i else "deeper/still")
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(coco / "images" / image["file_name"], folder)
    (root / "other.json").write_text('{"images": [], "annotations": "none", "categories": []}')
    found = find_data(root, "det", tmp_path / "made")
    for split in ("train", "val"):
        assert read_det(dataset(found, split)) == original(coco, split)
    assert_files(found)
    shutil.rmtree(root / "valid/deeper")
    with pytest.raises(DataError, match=r"1 of 2 images of .*valid/_annotations.coco.json' are not below"):
        find_data(root, "det", tmp_path / "made")


def test_coco_of_one_file_is_split_by_a_hash(coco: Path, tmp_path: Path) -> None:
    (coco / "annotations/instances_val.json").unlink()
    (coco / "annotations/instances_train.json").rename(coco / "all.json")
    before = read_det(
        CocoDataset(
            ann_file=str(coco / "all.json"),
            data_prefix=dict(img=str(coco / "images")),
            metainfo=dict(classes=CLASSES),
            serialize_data=False,
        )
    )
    found = find_data(coco, "det", tmp_path / "made", held_out=0.25)
    parts = [read_det(dataset(found, split)) for split in ("train", "val")]
    assert [len(part) for part in parts] == [3, 1]
    assert {**parts[0], **parts[1]} == before
    assert_files(found)
    again = find_data(coco, "det", tmp_path / "again", held_out=0.25)
    assert read_det(dataset(again, "val")).keys() == parts[1].keys()
    others = [find_data(coco, "det", tmp_path / "again", held_out=0.25, seed=seed) for seed in range(1, 6)]
    assert any(read_det(dataset(other, "val")).keys() != parts[1].keys() for other in others)


def test_coco_of_one_file_is_split_by_the_images_folders(coco: Path, tmp_path: Path) -> None:
    (coco / "annotations/instances_val.json").unlink()
    (coco / "annotations/instances_train.json").rename(coco / "all.json")
    for i, split in enumerate(("train", "train", "val", "test")):
        (coco / "images" / split).mkdir(exist_ok=True)
        (coco / f"images/scene_{i}.jpg").rename(coco / f"images/{split}/scene_{i}.jpg")
    found = find_data(coco, "det", tmp_path / "made")
    got = [sorted(read_det(dataset(found, split))) for split in ("train", "val")]
    assert got == [["scene_0.jpg", "scene_1.jpg"], ["scene_2.jpg"]]
    assert "The test split is left out (images: 1); val is what is validated on." in found.notes
    assert_files(found)


def test_coco_images_of_one_name_in_several_folders_are_refused(coco: Path, tmp_path: Path) -> None:
    shutil.copytree(coco / "images", coco / "small")
    with pytest.raises(DataError, match="are in several folders, 'images/', 'small/', with equal names"):
        find_data(coco, "det", tmp_path / "made")


def test_a_part_of_the_classes_is_taken_in_the_files_order(coco: Path, tmp_path: Path) -> None:
    found = find_data(coco, "det", tmp_path / "made", classes=["disc"])
    assert read_det(dataset(found, "val")) == original(coco, "val", classes=("disc",))
    found = find_data(coco, "det", tmp_path / "made", classes=["disc", "square"])
    assert found.classes == CLASSES
    assert any("in the data's order" in note for note in found.notes)
    with pytest.raises(DataError, match="the data have no class 'cube': expected some of"):
        find_data(coco, "det", tmp_path / "made", classes=["cube"])


def test_several_coco_files_of_a_split_are_refused(coco: Path, tmp_path: Path) -> None:
    train = coco / "annotations/instances_train.json"
    shutil.copy(train, coco / "annotations/person_train.json")
    found = find_data(coco, "det", tmp_path / "made")
    assert any("of the same split are left out 'annotations/person_train.json'" in note for note in found.notes)
    shutil.copy(train, coco / "annotations/instances_train_b.json")
    with pytest.raises(DataError, match="there are 3 annotation files of the split train"):
        find_data(coco, "det", tmp_path / "made")


def test_coco_files_that_do_not_parse_are_named(coco: Path, tmp_path: Path) -> None:
    path = coco / "annotations/instances_val.json"
    text = path.read_text()
    path.write_text(text.replace('"annotations":', '"annotations" '))
    with pytest.raises(DataError, match=r"instances_val.json' cannot be read: .*line 1 column"):
        find_data(coco, "det", tmp_path / "made")
    path.write_text(text.replace('"bbox"', '"box"'))
    with pytest.raises(DataError, match=r"instances_val.json': annotations\[0\], .* has no 'bbox'"):
        find_data(coco, "det", tmp_path / "made")


def test_coco_files_with_other_categories_are_refused(coco: Path, tmp_path: Path) -> None:
    edit_json(coco / "annotations/instances_val.json", lambda content: content["categories"].reverse())
    with pytest.raises(DataError, match="has the categories 'square', 'disc' and .* 'disc', 'square': expected"):
        find_data(coco, "det", tmp_path / "made")


@pytest.mark.parametrize("described", [True, False])
def test_yolo_has_the_boxes_and_polygons_of_the_original(coco: Path, tmp_path: Path, described: bool) -> None:
    root = copy_yolo(coco, tmp_path / "yolo", polygons=lambda i: i % 2 == 1, described=described)
    found = find_data(root, "det", tmp_path / "made", classes=None if described else CLASSES)
    assert (found.format, found.classes, found.masks) == ("YOLO's format", CLASSES, False)
    assert found.evaluator()["metric"] == ["bbox"]
    assert any("of 12; the others have boxes alone" in note for note in found.notes)
    for split in ("train", "val"):
        expected = objects(original(coco, split), crowds=False)
        got = read_det(dataset(found, split))
        assert got.keys() == expected.keys()
        for name, ones in expected.items():
            assert [one[0] for one in got[name]] == [one[0] for one in ones]
            # the original's circles are rounded
            assert np.allclose([one[1:5] for one in got[name]], [one[1:5] for one in ones], atol=0.02)
    assert_files(found)


def test_yolo_masks_are_the_originals(coco: Path, tmp_path: Path) -> None:
    found = find_data(copy_yolo(coco, tmp_path / "yolo", polygons=lambda i: True), "det", tmp_path / "made")
    assert found.masks and found.evaluator()["metric"] == ["bbox", "segm"]
    truth = json.loads((coco / "annotations/instances_val.json").read_text())
    expected = [one["segmentation"] for one in truth["annotations"]]
    built = dataset(found, "val")
    got = [i["mask"] for k in range(len(built)) for i in built.get_data_info(k)["instances"]]
    bitmaps = [
        PolygonMasks([[np.array(p) for p in polygons] for polygons in masks], 48, 64).to_ndarray()
        for masks in (got, expected)
    ]
    assert bitmaps[0].sum() > 100 and np.array_equal(*bitmaps)


@pytest.mark.parametrize(
    ("train", "val"),
    [("../train/images", "../valid/images"), ("train/images", "valid"), ("lists/a.txt", "lists/b.txt"), ("x", "y")],
)
def test_yolo_splits_are_those_of_the_yaml_or_of_folders(coco: Path, tmp_path: Path, train: str, val: str) -> None:
    copy, root = copy_yolo(coco, tmp_path / "yolo"), tmp_path / "other"
    (root / "lists").mkdir(parents=True)
    for split, target, name in (("train", "train", "a"), ("val", "valid", "b")):
        for kind in ("images", "labels"):
            shutil.copytree(copy / kind / split, root / target / kind)
        paths = sorted((root / target / "images").iterdir())
        (root / f"lists/{name}.txt").write_text("".join(f"./{target}/images/{path.name}\n" for path in paths))
    (root / "data.yaml").write_text(f"train: {train}\nval: {val}\nnames: [square, disc]\n")
    found = find_data(root, "det", tmp_path / "made")
    for split in ("train", "val"):
        assert read_det(dataset(found, split)).keys() == original(coco, split).keys()
    told = [note for note in found.notes if "which does not exist: folders' names say the splits" in note]
    assert len(told) == 2 * (train == "x")


def test_yolo_images_without_objects_and_names(coco: Path, tmp_path: Path) -> None:
    root = copy_yolo(coco, tmp_path / "yolo", described=False)
    (root / "labels/train/scene_0.txt").write_text("")
    (root / "labels/train/scene_1.txt").unlink()
    (root / "labels/train/lost.txt").write_text("")
    found = find_data(root, "det", tmp_path / "made")
    assert found.classes == ("class 0", "class 1")
    got = read_det(dataset(found, "train"))
    assert [len(got[f"scene_{i}.jpg"]) for i in range(4)] == [0, 0, 2, 2]
    notes = " ".join(found.notes)
    assert "Images without a label file are taken for images without objects (1): 'images/train/scene_1.jpg'" in notes
    assert "Label files without an image are left out (1): 'labels/train/lost.txt'" in notes


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("0 0.5 0.5 x 0.1", "is no YOLO label: expected numbers"),
        ("0 0.5 0.5 0.1", "has 3 numbers after the class"),
        ("0 30 20 10 10", "has the coordinate 30: expected 0 to 1"),
        ("7 0.5 0.5 0.1 0.1", "the class 7 has no name: expected 0 to 1"),
        ("0.5 0.5 0.5 0.1 0.1", "the class is 0.5: expected an integer"),
        ("0 0.5 0.5 0 0.1", "has a box of width 0 and height 0.1"),
    ],
)
def test_yolo_lines_that_are_none_are_named(coco: Path, tmp_path: Path, line: str, problem: str) -> None:
    root = copy_yolo(coco, tmp_path / "yolo")
    with (root / "labels/val/scene_5.txt").open("a") as file:
        file.write(f"\n{line}\n")
    with pytest.raises(DataError, match=rf"scene_5.txt', line 3.*{problem}"):
        find_data(root, "det", tmp_path / "made")


def test_yaml_that_does_not_parse_is_named(coco: Path, tmp_path: Path) -> None:
    root = copy_yolo(coco, tmp_path / "yolo")
    (root / "data.yaml").write_text("train: images/train\nnames: [square, disc\nnc: 2\n")
    with pytest.raises(DataError, match=r"data.yaml', line 3 cannot be read"):
        find_data(root, "det", tmp_path / "made")
    (root / "data.yaml").write_text("train: images/train\nnames: [square, disc]\nnc: 3\n")
    with pytest.raises(DataError, match=r"data.yaml' has nc: 3 and 2 names"):
        find_data(root, "det", tmp_path / "made")


def whole(content: dict[str, Any]) -> dict[str, Any]:
    return {name: sorted((one[0], *map(int, one[1:5]), one[5]) for one in ones) for name, ones in content.items()}


def test_voc_has_the_boxes_of_the_original(coco: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):  # VOC's corners are whole pixels
        edit_json(
            coco / f"annotations/instances_{split}.json",
            lambda content: [one.update(bbox=[int(v) for v in one["bbox"]]) for one in content["annotations"]],
        )
    root = copy_voc(coco, tmp_path / "voc")
    found = find_data(root, "det", tmp_path / "made")
    assert (found.format, found.classes, found.masks) == ("Pascal VOC's format", ("disc", "square"), False)
    assert any(
        "Objects marked difficult are neither learned nor scored, as crowds are not (1)" in note for note in found.notes
    )
    for split in ("train", "val"):
        assert read_det(dataset(found, split)) == original(coco, split)
    assert_files(found)
    assert find_data(root, "det", tmp_path / "made", classes=CLASSES).classes == CLASSES


def test_voc_without_lists_is_split_and_corners_of_0_are_coordinates(coco: Path, tmp_path: Path) -> None:
    root = copy_voc(coco, tmp_path / "voc", lists=False)
    path = root / "Annotations/scene_3.xml"
    path.write_text(path.read_text().replace("<xmin>10</xmin>", "<xmin>0</xmin>"))
    found = find_data(root, "det", tmp_path / "made", held_out=0.5)
    assert any("Held out for validation: 3 of 6 images (50%)" in note for note in found.notes)
    assert any("taken for coordinates from 0 on" in note for note in found.notes)
    got = {**read_det(dataset(found, "train")), **read_det(dataset(found, "val"))}
    assert ("square", 0, 9, 27, 26, 0) in got["scene_3.jpg"]


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<name>disc</name>", "", r"line 8: <object> has no <name>"),
        ("<xmin>36</xmin>", "<xmin>left</xmin>", r"line 10: <xmin> holds 'left': expected a number"),
        ("<width>64</width>", "<width>65</width>", r"line 3: <size> says 65 x 48, and the image .* is 64 x 48"),
        ("</annotation>", "", r"cannot be read: no element found: line 13"),
    ],
)
def test_voc_files_with_errors_are_named_with_the_line(
    coco: Path, tmp_path: Path, old: str, new: str, problem: str
) -> None:
    root = copy_voc(coco, tmp_path / "voc")
    path = root / "Annotations/scene_1.xml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(DataError, match=rf"scene_1.xml'.*{problem}"):
        find_data(root, "det", tmp_path / "made")


def test_voc_files_are_of_the_image_of_their_own_name(coco: Path, tmp_path: Path) -> None:
    root = copy_voc(coco, tmp_path / "voc", lists=False)
    expected = {name: ones for split in ("train", "val") for name, ones in original(coco, split).items()}
    for i in range(2):  # an augmented copy, whose file says the image that it was made of
        shutil.copy(root / f"JPEGImages/scene_{i}.jpg", root / f"JPEGImages/scene_{i}_aug.jpg")
        text = (root / f"Annotations/scene_{i}.xml").read_text()
        text = text.replace("<object>", "<part>", 1).replace("</object>", "</part>", 1)
        (root / f"Annotations/scene_{i}_aug.xml").write_text(text)
    (root / "Annotations/scene_5.xml").rename(root / "Annotations/other.xml")  # no image is called so
    found = find_data(root, "det", tmp_path / "made")
    got = {**read_det(dataset(found, "train")), **read_det(dataset(found, "val"))}
    assert {name: len(ones) for name, ones in got.items()} == {
        **{name: len(ones) for name, ones in expected.items()},
        **{f"scene_{i}_aug.jpg": len(expected[f"scene_{i}.jpg"]) - 1 for i in range(2)},
    }
    told = [note for note in found.notes if "another <filename> than their own" in note]
    assert len(told) == 1 and "(2): 'Annotations/scene_0_aug.xml', 'Annotations/scene_1_aug.xml'" in told[0]
    (root / "JPEGImages/scene_1_aug.jpg").unlink()
    with pytest.raises(
        DataError, match=r"scene_1.xml' and '.*scene_1_aug.xml' are both of the image 'JPEGImages/scene_1.jpg'"
    ):
        find_data(root, "det", tmp_path / "made")


def test_formats_that_agree_are_one_and_those_that_differ_refused(coco: Path, tmp_path: Path) -> None:
    for split in ("train", "val"):
        path = coco / f"annotations/instances_{split}.json"
        edit_json(path, lambda content: content["annotations"].pop(2) if len(content["images"]) == 4 else None)
    root = copy_yolo(coco, tmp_path / "yolo")
    (root / "annotations").mkdir()
    for split in ("train", "val"):
        shutil.copy(coco / f"annotations/instances_{split}.json", root / "annotations")
    found = find_data(root, "det", tmp_path / "made")
    assert found.format == "COCO's format"
    assert any("YOLO's format is there, too" in note for note in found.notes)
    (root / "labels/val/scene_5.txt").write_text("")
    with pytest.raises(
        DataError,
        match=r"objects in several formats, which differ: COCO's format .*12 objects in 6 images; YOLO's .*10 objects",
    ):
        find_data(root, "det", tmp_path / "made")
