from pathlib import Path

import pytest
from helpers.data_sets import write_class_folders

from apla_mm.data.class_images import check_class_images, counts_of_classes, labels_of
from apla_mm.data.reading import DataError, UnreadableError

CLASSES = ("dark", "light", "red")
HOW = dict(flag="color", backend="cv2")


def infos(root: Path) -> list[dict]:
    files = sorted((root / "train").rglob("*.jpg"))
    return [dict(img_path=str(file), gt_label=CLASSES.index(file.parent.name)) for file in files]


def test_images_in_order_are_all_read(tmp_path: Path) -> None:
    assert check_class_images(infos(write_class_folders(tmp_path)), CLASSES, None, **HOW) == 12


def test_an_image_that_cannot_be_read_is_named_or_collected(tmp_path: Path) -> None:
    samples = infos(write_class_folders(tmp_path))
    Path(samples[7]["img_path"]).write_bytes(b"no image")
    with pytest.raises(UnreadableError, match=samples[7]["img_path"]):
        check_class_images(samples, CLASSES, None, **HOW)
    unreadable: list[str] = []
    assert check_class_images(samples, CLASSES, None, None, unreadable, **HOW) == 12
    assert len(unreadable) == 1 and samples[7]["img_path"] in unreadable[0]
    Path(samples[2]["img_path"]).rename(Path(samples[2]["img_path"]).with_suffix(".JPG"))
    with pytest.raises(DataError, match=r"'.*2\.jpg' is missing; there is '2\.JPG'"):
        check_class_images(samples, CLASSES, None, **HOW)


@pytest.mark.parametrize("label", [3, -1, [0, 3]])
def test_a_label_of_no_class_is_named(tmp_path: Path, label: object) -> None:
    samples = infos(write_class_folders(tmp_path))
    samples[4]["gt_label"] = label
    with pytest.raises(DataError, match=r"has the label -?\d, and there are 3 classes, .*: expected 0 to 2"):
        check_class_images(samples, CLASSES, None, **HOW)


def test_labels_and_counts() -> None:
    assert (labels_of({}), labels_of(dict(gt_label=2)), labels_of(dict(gt_label=[0, 2]))) == ([], [2], [0, 2])
    told, empty = counts_of_classes([0, 2, 2], CLASSES)
    assert told == "images of each of 3 classes: red 2, dark 1, light 0" and empty == "no image of the class 'light'"
    assert counts_of_classes([0, 1, 2], CLASSES)[1] == ""
