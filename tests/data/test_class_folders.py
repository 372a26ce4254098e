"""Folders of classes: those of mmpretrain, and what cannot be meant."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.data_sets import write_class_folders
from helpers.optional import needs
from mmengine.registry import DATASETS

from apla_mm.data.class_folders import check_class_folders, class_folders_of
from apla_mm.data.reading import DataError

needs("mmpretrain")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "data")


def config(root: Path, **settings: Any) -> dict[str, Any]:
    def loader(split: str) -> dict[str, Any]:
        return dict(dataset=dict(type="CustomDataset", data_root=str(root), data_prefix=split, pipeline=[], **settings))

    return dict(default_scope="mmpretrain", train_dataloader=loader("train"), val_dataloader=loader("val"))


def test_classes_are_in_mmpretrains_order(root: Path) -> None:
    (root / "train/Zebra").mkdir()
    shutil.copy(root / "train/red/0.jpg", root / "train/Zebra/0.jpg")
    cfg = config(root)
    (train, val) = class_folders_of(cfg)
    theirs = DATASETS.build(cfg["train_dataloader"]["dataset"] | dict(type="mmpretrain.CustomDataset"))
    assert tuple(train.classes) == theirs.metainfo["classes"] == ("Zebra", "dark", "light", "red")
    assert (val.loader, val.classes) == ("val_dataloader", ["dark", "light", "red"])


def test_what_is_in_order_and_what_lies_in_no_folders_passes(root: Path) -> None:
    check_class_folders(config(root))
    check_class_folders(config(root, metainfo=dict(classes=("night", "day", "rose"))))
    (root / "list.txt").write_text("dark/0.jpg 0\n")
    assert list(class_folders_of(config(root, ann_file="list.txt"))) == []
    assert list(class_folders_of(config(root, with_label=False))) == []
    assert list(class_folders_of(config(root / "nowhere"))) == []
    (root / "val/dark/0.jpg").unlink()
    (root / "val/dark/1.jpg").unlink()
    check_class_folders(config(root))  # a class that is not validated


def rename(root: Path) -> None:
    (root / "val/red").rename(root / "val/rot")


def remove(root: Path) -> None:
    shutil.rmtree(root / "val/red")


def empty(root: Path) -> None:
    (root / "train/red").rename(root / "red")
    (root / "train/red").mkdir()


def other_suffix(root: Path) -> None:
    for path in list((root / "train/red").iterdir()):
        path.rename(path.with_suffix(".WEBP"))


def one_class(root: Path) -> None:
    for name in ("dark", "light"):
        shutil.rmtree(root / "train" / name)


def no_class(root: Path) -> None:
    for name in ("dark", "light", "red"):
        (root / "train" / name).rename(root / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            rename,
            "val_dataloader: '.*/val' lacks 'red' and has 'rot' besides: its folders must be the classes of train",
        ),
        (remove, "val_dataloader: '.*/val' lacks 'red': its folders"),
        (empty, "train_dataloader: '.*/train' has no image of the class 'red': add images"),
        (other_suffix, r"has no file '\*\.jpg, .*' but 4 '\*\.webp' of the class 'red': add images, convert them"),
        (one_class, "holds the folder 'red' alone: expected a folder of images for each of two or more"),
        (no_class, "holds no folder: expected a folder of images for each"),
    ],
)
def test_what_cannot_be_meant_is_named(root: Path, change: Callable[[Path], None], message: str) -> None:
    change(root)
    with pytest.raises(DataError, match=message):
        check_class_folders(config(root))


def test_a_test_is_compared_with_the_folders_of_training(root: Path) -> None:
    rename(root)
    with pytest.raises(DataError, match="lacks 'red' and has 'rot' besides"):
        check_class_folders(config(root), ["val_dataloader"])
    shutil.rmtree(root / "train")
    check_class_folders(config(root), ["val_dataloader"])  # nothing to compare with


@pytest.mark.parametrize("classes", [("red", "light", "dark"), ("dark", "light"), ("dark", "light", "blue")])
def test_names_of_folders_in_another_order_would_be_other_labels(root: Path, classes: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="has the classes 'dark', 'light', 'red', in this order, and metainfo.classes"):
        check_class_folders(config(root, metainfo=dict(classes=classes)))
