"""Files of equal names in the folders of several splits, of which one is missing."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.data_formats import copy_seg, copy_voc, copy_yolo
from helpers.data_sets import edit_json, write_coco, write_scenes

from apla_mm.data.reading import DataError
from apla_mm.formats import FoundData, find_data
from apla_mm.formats.files import one_of


def listed(found: FoundData, split: str) -> dict[str, int]:
    """How many objects each image of a split has."""
    content = json.loads(Path(found.dataset(split)["ann_file"]).read_text())
    counts = {image["id"]: 0 for image in content["images"]}
    for one in content["annotations"]:
        counts[one["image_id"]] += 1
    return {image["file_name"]: counts[image["id"]] for image in content["images"]}


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    """train/ and valid/, each with an annotation file and images of the same names."""
    source, root = write_coco(tmp_path / "shapes"), tmp_path / "roboflow"
    for split, name in (("train", "train"), ("val", "valid")):
        (root / name).mkdir(parents=True)
        target = root / name / "_annotations.coco.json"
        shutil.copy(source / f"annotations/instances_{split}.json", target)

        def rename(content: Any, folder: Path = root / name) -> None:
            for i, image in enumerate(content["images"]):
                shutil.copy(source / "images" / image["file_name"], folder / f"{i}.jpg")
                image["file_name"] = f"{i}.jpg"

        edit_json(target, rename)
    return root


def test_coco_images_of_another_split_are_not_taken(coco: Path, tmp_path: Path) -> None:
    found = find_data(coco, "det", tmp_path / "made")
    assert [found.dataset(split)["data_prefix"]["img"] for split in ("train", "val")] == ["train/", "valid/"]
    (coco / "valid/1.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of 2 images of .*valid/_annotations.coco.json' are not below.*'1.jpg'"):
        find_data(coco, "det", tmp_path / "made")


def test_folders_that_coco_files_name_themselves_are_no_guess(coco: Path, tmp_path: Path) -> None:
    (coco / "annotations").mkdir()
    for split in ("train", "valid"):
        target = coco / f"annotations/{split}.json"
        shutil.move(coco / split / "_annotations.coco.json", target)
        edit_json(
            target, lambda content, s=split: [i.update(file_name=f"{s}/{i['file_name']}") for i in content["images"]]
        )
    shutil.move(coco / "valid/1.jpg", coco / "valid/9.jpg")
    edit_json(coco / "annotations/train.json", lambda content: content["images"][0].update(file_name="valid/9.jpg"))
    edit_json(coco / "annotations/valid.json", lambda content: content["images"][1].update(file_name="train/0.jpg"))
    found = find_data(coco, "det", tmp_path / "made")
    assert {**listed(found, "train")}.keys() == {"valid/9.jpg", *(f"train/{i}.jpg" for i in (1, 2, 3))}
    assert listed(found, "val").keys() == {"valid/0.jpg", "train/0.jpg"}


def test_yolo_background_images_do_not_get_another_splits_objects(tmp_path: Path) -> None:
    copy, root = copy_yolo(write_coco(tmp_path / "shapes"), tmp_path / "yolo"), tmp_path / "other"
    for split, target in (("train", "train"), ("val", "valid")):
        for kind, suffix in (("images", "jpg"), ("labels", "txt")):
            (root / target / kind).mkdir(parents=True)
            for i, path in enumerate(sorted((copy / kind / split).iterdir())[:2]):
                shutil.copy(path, root / target / kind / f"{i:04}.{suffix}")
    (root / "train/labels/0001.txt").unlink()
    (root / "data.yaml").write_text("train: ../train/images\nval: ../valid/images\nnames: [square, disc]\n")
    found = find_data(root, "det", tmp_path / "made")
    assert listed(found, "train") == {"train/images/0000.jpg": 2, "train/images/0001.jpg": 0}
    assert any("without a label file are taken for images without objects (1)" in note for note in found.notes)


def test_voc_images_of_another_split_are_not_taken(tmp_path: Path) -> None:
    source, root = copy_voc(write_coco(tmp_path / "shapes"), tmp_path / "voc", lists=False), tmp_path / "other"
    for split in ("train", "valid"):
        (root / split).mkdir(parents=True)
        for i in range(2):
            shutil.copy(source / f"JPEGImages/scene_{i}.jpg", root / split)
            shutil.copy(source / f"Annotations/scene_{i}.xml", root / split)
    assert listed(find_data(root, "det", tmp_path / "made"), "train").keys() == {
        "train/scene_0.jpg",
        "train/scene_1.jpg",
    }
    (root / "train/scene_1.jpg").unlink()
    with pytest.raises(DataError, match=r"train/scene_1.xml' has no image of the name 'scene_1.jpg'"):
        find_data(root, "det", tmp_path / "made")


@pytest.mark.parametrize(
    ("image", "label_map", "problem"),
    [
        ("{split}/{name}", "masks/{name}.png", "'masks/scene_0.png' .* fits images of several: 'train/scene_0.jpg'"),
        ("images/{name}", "{split}_masks/{name}.png", "'images/scene_0.jpg' .* fits label maps of several"),
    ],
)
def test_label_maps_that_fit_images_of_several_splits_are_refused(
    tmp_path: Path, image: str, label_map: str, problem: str
) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    for scene in [*scenes.rglob("validation/scene_1.*")]:
        scene.rename(scene.with_stem("scene_7"))

    def path(pattern: str) -> Any:
        return lambda split, name: pattern.format(split=split, name=name)

    root = copy_seg(scenes, path(image), path(label_map), tmp_path / "copy")
    with pytest.raises(DataError, match=problem):
        find_data(root, "seg", tmp_path / "made")


def test_one_of_takes_no_file_of_another_split() -> None:
    assert one_of(["valid/2.jpg"], "train/2.xml") is None
    assert one_of(["images/2.jpg", "valid/2.jpg"], "train/2.xml") == "images/2.jpg"
    assert one_of(["valid/2.jpg"], "annotations/2.xml") == "valid/2.jpg"
    assert one_of(["val2014/2.jpg"], "train/all.json", "val2014/2.jpg") == "val2014/2.jpg"
