import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from helpers.data_sets import write_coco, write_scenes

from apla_mm.data.reading import DataError
from apla_mm.formats import find_data
from apla_mm.formats.files import split_of
from apla_mm.formats.splits import train_and_val


@pytest.mark.parametrize("task", ["seg", "det"])
def test_where_nothing_is_found_what_is_there_is_listed(tmp_path: Path, task: str) -> None:
    for name in ("a/1.csv", "a/2.csv", "b/c/3.jpg", "notes.txt"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("x")
    with pytest.raises(DataError) as caught:
        find_data(tmp_path / "data", task, tmp_path / "made")
    text = str(caught.value)
    assert "Looked for: " in text and ("img_01_mask.png" if task == "seg" else "data.yaml") in text
    assert "2 '*.csv' in 'a', 1 '*.jpg' in 'b/c'" in text
    assert not (tmp_path / "made").exists()


def test_data_for_the_other_task_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no data for task='seg', but for task='det', in COCO's format"):
        find_data(write_coco(tmp_path / "coco"), "seg", tmp_path / "made")
    with pytest.raises(DataError, match="no data for task='det', but for task='seg', images and label maps"):
        find_data(write_scenes(tmp_path / "scenes"), "det", tmp_path / "made")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (dict(task="cls"), "task='cls': expected 'seg' or 'det'"),
        (dict(held_out=1.5), "held_out=1.5: expected a share"),
        (dict(classes="cat"), "classes='cat': expected names that differ"),
        (dict(classes=["cat", "cat"]), "expected names that differ"),
        (dict(folder="nowhere"), "'nowhere' does not exist"),
        (dict(into="."), "into the data's folder"),
    ],
)
def test_arguments_that_are_none_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, Any], problem: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=problem):
        find_data(**{**dict(folder=".", task="seg", into="made"), **arguments})


def test_files_that_are_made_inside_the_folder_are_no_data(tmp_path: Path) -> None:
    coco = write_coco(tmp_path / "coco")
    shutil.move(coco / "annotations/instances_train.json", coco / "all.json")
    (coco / "annotations/instances_val.json").unlink()
    first, second = (find_data(coco, "det", coco / "work/made") for _ in range(2))
    assert first == second


def test_a_test_split_is_validated_on_where_there_is_no_other(tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes")
    for kind in ("images", "annotations"):
        (scenes / kind / "validation").rename(scenes / kind / "test")
    found = find_data(scenes, "seg", tmp_path / "made")
    assert "There is no val split: the test split is validated on (images: 2)." in found.notes
    assert len(json.loads(Path(found.dataset("val")["ann_file"]).read_text())["data_list"]) == 2
    write_scenes(scenes)
    found = find_data(scenes, "seg", tmp_path / "made")
    assert "The test split is left out (images: 2); val is what is validated on." in found.notes
    with pytest.raises(ValueError, match="no split 'test': expected one of 'train', 'val'"):
        found.dataset("test")


@pytest.mark.parametrize(
    ("path", "split", "rest"),
    [
        ("images/train/a.jpg", "train", "images/a.jpg"),
        ("train2017/a.jpg", "train", "a.jpg"),
        ("val_images/b/test.jpg", "val", "images/b/test.jpg"),
        ("Validation/a.jpg", "val", "a.jpg"),
        ("testing/a.jpg", "test", "a.jpg"),
        ("trains/val.jpg", None, "trains/val.jpg"),
    ],
)
def test_splits_are_known_by_folders(path: str, split: str | None, rest: str) -> None:
    assert split_of(path) == (split, rest)


def test_held_out_images_are_a_share_and_stay_as_others_come() -> None:
    names: dict[str | None, list[str]] = {None: [f"{i}.jpg" for i in range(200)]}
    used, notes = train_and_val(names, names, 0.2, 0)
    assert len(used["val"]) == 40 and sorted(used["train"] + used["val"]) == sorted(names[None])
    assert notes[-1].startswith("Held out for validation: 40 of 200 images (20%), chosen by")
    backwards: dict[str | None, list[str]] = {None: names[None][::-1]}
    assert set(train_and_val(backwards, backwards, 0.2, 0)[0]["val"]) == set(used["val"])
    assert set(train_and_val(names, names, 0.2, 1)[0]["val"]) != set(used["val"])
    with pytest.raises(DataError, match="there is 1 image without a split"):
        train_and_val({None: ["a"]}, {None: ["a"]}, 0.2, 0)
    with pytest.raises(DataError, match=r"there is no training split, only val \(1\)"):
        train_and_val({"val": ["a"]}, {"val": ["a"]}, 0.2, 0)
