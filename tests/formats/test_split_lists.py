"""Lists of splits, as the common tools write them: whose images train, and whose are validated on."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_formats import write_lists
from mmengine.registry import DATASETS
from PIL import Image

from apla_mm.data.reading import DataError
from apla_mm.formats import FoundData, find_data

NAMES = ("a", "b", "c", "d", "my photo", "f")
TRAIN, VAL = ("a", "c", "my photo", "f"), ("b", "d")


def write_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((16, 20, 3), np.uint8)).save(path)


def write_map(path: Path, value: int = 1) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    labels = np.zeros((16, 20), np.uint8)
    labels[:, 10:] = value
    Image.fromarray(labels).save(path)


def write_text(path: Path, lines: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def write_yolo(root: Path, folder: str) -> None:
    for name in NAMES:
        write_image(root / folder / f"{name}.jpg")
        write_text(root / folder / f"{name}.txt", ["0 0.5 0.5 0.2 0.2"])


def stems(found: FoundData, scope: str = "mmdet") -> dict[str, list[str]]:
    """The images of both splits."""
    sets = {}
    for split in ("train", "val"):
        dataset = DATASETS.build(dict(found.dataset(split), serialize_data=False, _scope_=scope))
        paths = [Path(dataset.get_data_info(i)["img_path"]) for i in range(len(dataset))]
        sets[split] = sorted(path.stem for path in paths)
    return sets


def notes(found: FoundData) -> str:
    return " ".join(found.notes)


EXPECTED = dict(train=sorted(TRAIN), val=sorted(VAL))


@pytest.mark.parametrize("key", ["valid", "test"])
def test_darknets_lists(key: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_yolo(root, "obj")
    (root / "obj.names").write_text("thing\n")
    write_text(root / "obj.data", ["classes = 1", "train = data/train.txt", f"{key} = data/check.txt", "backup = b/"])
    write_text(root / "train.txt", [f"data/obj/{name}.jpg" for name in TRAIN])
    write_text(root / "check.txt", [f"data/obj/{name}.jpg" for name in VAL])
    found = find_data(root, "det", tmp_path / "made")
    assert stems(found) == EXPECTED and "'train.txt'" in notes(found) and "'check.txt'" in notes(found)


@pytest.mark.parametrize("line", ["./obj/{}.jpg", "/home/someone/set/obj/{}.jpg", "obj\\{}.jpg", "{}.jpg"])
def test_yolos_lists_without_a_description(line: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_yolo(root, "obj")
    write_text(root / "classes.txt", ["thing"])
    write_text(root / "train.txt", map(line.format, TRAIN))
    write_text(root / "val.txt", map(line.format, VAL))
    assert stems(find_data(root, "det", tmp_path / "made")) == EXPECTED


def test_of_equal_names_the_path_of_the_list_counts(tmp_path: Path) -> None:
    root = tmp_path / "data"
    for folder in ("a", "b"):
        for i in range(3):
            write_image(root / folder / f"images/{i}.jpg")
            write_text(root / folder / f"labels/{i}.txt", ["0 0.5 0.5 0.2 0.2"])
    write_text(root / "data.yaml", ["train: train.txt", "val: val.txt", "names: [thing]"])
    write_text(root / "train.txt", [f"./{folder}/images/{i}.jpg" for folder in "ab" for i in (0, 1)])
    write_text(root / "val.txt", [f"./{folder}/images/2.jpg" for folder in "ab"])
    found = find_data(root, "det", tmp_path / "made")
    assert stems(found) == dict(train=["0", "0", "1", "1"], val=["2", "2"])
    write_text(root / "val.txt", ["2.jpg"])
    with pytest.raises(DataError, match=r"val\.txt', line 1: '2\.jpg' is the name of several"):
        find_data(root, "det", tmp_path / "again")


@pytest.mark.parametrize("named", [("Train", "Validation"), ("train", "val"), ("trainval", "test")])
def test_lists_of_pascal_voc(named: tuple[str, str], tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for name in NAMES:
        write_image(root / f"JPEGImages/{name}.jpg")
        write_map(root / f"SegmentationClass/{name}.png")
    write_lists(root, "Segmentation", dict(zip(named, (list(TRAIN), list(VAL)), strict=True)))
    assert stems(find_data(root, "seg", tmp_path / "made"), "mmseg") == EXPECTED


def test_pascal_voc_in_subfolders(tmp_path: Path) -> None:
    root = tmp_path / "voc"
    for folder in "ab":
        for i in range(3):
            write_image(root / f"JPEGImages/{folder}/{i}.jpg")
            write_map(root / f"SegmentationClass/{folder}/{i}.png", 1 + (folder == "b"))
    lists = dict(train=[f"{folder}/{i}" for folder in "ab" for i in (0, 1)], val=["a/2", "b/2"])
    write_lists(root, "Segmentation", lists)
    found = find_data(root, "seg", tmp_path / "made")
    for split, names in lists.items():
        dataset: Any = DATASETS.build(dict(found.dataset(split), serialize_data=False, _scope_="mmseg"))
        infos = [dataset.get_data_info(i) for i in range(len(dataset))]
        for kind, folder in (("img_path", "JPEGImages"), ("seg_map_path", "SegmentationClass")):
            paths = [Path(info[kind]).relative_to(root / folder).with_suffix("").as_posix() for info in infos]
            assert sorted(paths) == sorted(names)
    write_text(root / "ImageSets/Segmentation/train.txt", ["0", "1"])
    with pytest.raises(DataError, match=r"line 1: '0' is the name of several"):
        find_data(root, "seg", tmp_path / "again")


def test_lists_with_further_words_beside_images_and_label_maps(tmp_path: Path) -> None:
    """As of Oxford's pets."""
    root = tmp_path / "pets"
    names = [name.replace(" ", "_") for name in NAMES]
    for name in names:
        write_image(root / f"images/{name}.jpg")
        write_map(root / f"annotations/trimaps/{name}.png")
    train = [name.replace(" ", "_") for name in TRAIN]
    write_text(root / "annotations/trainval.txt", [f"{name} 1 1 1" for name in train])
    write_text(root / "annotations/test.txt", [f"{name} 1 1 1" for name in VAL])
    found = find_data(root, "seg", tmp_path / "made")
    assert stems(found, "mmseg") == dict(train=sorted(train), val=sorted(VAL))


def test_a_list_of_no_split_is_told_and_not_read(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_yolo(root, "obj")
    write_text(root / "classes.txt", ["thing"])
    write_text(root / "chosen.txt", [f"obj/{name}.jpg" for name in TRAIN])
    write_text(root / "README.txt", ["what this is", "and by whom"])
    found = find_data(root, "det", tmp_path / "made")
    assert "texts that list images, and are named after no split, are not read (1): 'chosen.txt'" in notes(found)
    (root / "chosen.txt").unlink()
    assert "There are no folders or lists of splits." in notes(find_data(root, "det", tmp_path / "again"))


def test_what_a_list_names_and_is_not_there_is_named(tmp_path: Path) -> None:
    root = tmp_path / "data"
    write_yolo(root, "obj")
    write_text(root / "classes.txt", ["thing"])
    write_text(root / "train.txt", [*(f"obj/{name}.jpg" for name in TRAIN), "obj/gone.jpg"])
    with pytest.raises(DataError, match=r"train\.txt', line 5: 'obj/gone\.jpg' has no image: add it, or remove"):
        find_data(root, "det", tmp_path / "made")
