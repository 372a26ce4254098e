from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_formats import SEG_PIPELINE, copy_voc_seg, read_seg, seg_samples
from helpers.data_sets import write_scenes
from mmengine.registry import DATASETS
from PIL import Image

from apla_mm.data.reading import DataError
from apla_mm.formats import FoundData, find_data

COLOURS = np.array([[9, 0, 0], [0, 128, 7]] + [[255, 255, 255]] * 254, np.uint8)
CAMVID = "name, r, g, b\nwall, 9, 0, 0\nsky, 0, 128, 7\nvoid, 255, 255, 255\n"
CVAT = "# label:color_rgb:parts:actions\nwall:9,0,0::\nsky:0,128,7::\nvoid:255,255,255::\n"


@pytest.fixture
def scenes(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


def paint(root: Path, colours: np.ndarray = COLOURS) -> None:
    """Save all label maps in colour."""
    for path in [*(root / "annotations").rglob("*.png"), *(root / "SegmentationClass").rglob("*.png")]:
        Image.fromarray(colours[np.asarray(Image.open(path))]).save(path)


def label_maps(found: FoundData, split: str) -> list[np.ndarray]:
    config = dict(found.dataset(split), pipeline=SEG_PIPELINE, serialize_data=False, _scope_="mmseg")
    return [labels for _, labels in read_seg(DATASETS.build(config))]


def expected(scenes: Path, split: str) -> list[np.ndarray]:
    return [np.where(labels == 255, 2, labels) for _, labels in seg_samples(scenes, split)]


@pytest.mark.parametrize(("name", "text"), [("class_dict.csv", CAMVID), ("labelmap.txt", CVAT)])
def test_colours_that_a_file_names_are_read(scenes: Path, tmp_path: Path, name: str, text: str) -> None:
    train, val = expected(scenes, "training"), expected(scenes, "validation")
    paint(scenes)
    (scenes / name).write_text(text)
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert found.classes == ("wall", "sky", "void")
    assert found.format == "ADE20K's format"
    assert any(f"made ones of class indices, by '{name}'" in note for note in found.notes)
    for split, labels in (("train", train), ("val", val)):
        assert all(np.array_equal(a, b) for a, b in zip(label_maps(found, split), labels, strict=True))
    part = find_data(scenes, "seg", tmp_path / "lists", classes=["sky", "wall"])
    assert np.array_equal(label_maps(part, "val")[0], np.array([1, 0, 255])[val[0]])


def test_colours_in_pascal_vocs_folders_have_the_files_classes(scenes: Path, tmp_path: Path) -> None:
    train = expected(scenes, "training")
    root = copy_voc_seg(scenes, tmp_path / "voc")
    paint(root)
    (root / "labelmap.txt").write_text(CVAT)
    found = find_data(root, "seg", tmp_path / "lists")
    assert (found.format, found.classes) == ("Pascal VOC's format", ("wall", "sky", "void"))
    assert all(np.array_equal(a, b) for a, b in zip(label_maps(found, "train"), train, strict=True))


def test_equal_channels_are_one(scenes: Path, tmp_path: Path) -> None:
    before = [labels for _, labels in seg_samples(scenes, "training")]
    paint(scenes, np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1))
    found = find_data(scenes, "seg", tmp_path / "lists")
    assert all(np.array_equal(a, b) for a, b in zip(label_maps(found, "train"), before, strict=True))


def test_a_colour_without_a_name_is_refused(scenes: Path, tmp_path: Path) -> None:
    paint(scenes)
    (scenes / "class_dict.csv").write_text(CAMVID.replace("255, 255, 255", "254, 255, 255"))
    with pytest.raises(DataError, match=r"has, in .*% of its pixels, colours that 'class_dict.csv' does not have"):
        find_data(scenes, "seg", tmp_path / "lists")


@pytest.mark.parametrize(
    ("name", "text", "match"),
    [
        ("class_dict.csv", CAMVID.replace("name", "class"), r"has the columns .*: expected name, r, g, b"),
        ("class_dict.csv", CAMVID + "sea, 1, 2\n", "line 5, has 3 cells: expected 4"),
        ("class_dict.csv", CAMVID + "sea, 0, 128, 7\n", r"has the colour '\(0, 128, 7\)' twice"),
        ("class_dict.csv", CAMVID + "sky, 1, 1, 1\n", "has the class 'sky' twice"),
        ("class_dict.csv", CAMVID + "sea, 0, 128, 256\n", "has the colour '0,128,256': expected red, green and blue"),
        ("class_dict.csv", "name,r,g,b\n", "names no class"),
        ("labelmap.txt", CVAT + "sea::\n", "has the colour '': expected red"),
        ("_classes.csv", "Pixel Value, Class\n0, wall\n2, sky\n", "has other labels than 0, 1, 2"),
    ],
)
def test_broken_files_of_classes_are_named(scenes: Path, tmp_path: Path, name: str, text: str, match: str) -> None:
    (scenes / name).write_text(text)
    with pytest.raises(DataError, match=match):
        find_data(scenes, "seg", tmp_path / "lists")


def test_files_that_differ_are_refused(scenes: Path, tmp_path: Path) -> None:
    (scenes / "classes.txt").write_text("wall\nsea\n")
    (scenes / "class_dict.csv").write_text(CAMVID)
    with pytest.raises(DataError, match="'class_dict.csv' and 'classes.txt' name different classes"):
        find_data(scenes, "seg", tmp_path / "lists")


def test_labels_that_a_table_names(scenes: Path, tmp_path: Path) -> None:
    (scenes / "_classes.csv").write_text("Pixel Value, Class\n0, wall\n1, sky\n")
    found: Any = find_data(scenes, "seg", tmp_path / "lists")
    assert found.classes == ("wall", "sky")
