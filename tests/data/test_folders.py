from pathlib import Path
from typing import Any

import pytest

from apla_mm.data.folders import check_folders
from apla_mm.data.reading import DataError
from apla_mm.data.similar_files import hint_at


def check(root: str, **settings: Any) -> None:
    prefix = dict(img_path="images/training", seg_map_path="annotations/training")
    defaults = dict(type="BaseSegDataset", data_root=root, data_prefix=prefix)
    check_folders(dict(default_scope="mmseg", train_dataloader=dict(dataset={**defaults, **settings})))


def test_images_behind_links_are_found_as_mmengine_finds_them(data_root: Path) -> None:
    (data_root / "images/training").rename(data_root / "elsewhere")
    (data_root / "images/training").mkdir()
    (data_root / "images/training/two words").symlink_to(data_root / "elsewhere")
    check(str(data_root))
    check(f"{data_root}/")


def test_folder_of_other_suffixes_is_told_from_an_empty_one(data_root: Path) -> None:
    for path in list((data_root / "images/training").iterdir()):
        path.rename(path.with_suffix(".JPG"))
    with pytest.raises(DataError, match=r"holds no files '\*\.jpg' but 3 '\*\.JPG': set img_suffix, or rename; set"):
        check(str(data_root))
    check(str(data_root), img_suffix=".JPG")


def test_place_that_is_no_folder_and_home_are_named(data_root: Path) -> None:
    with pytest.raises(DataError, match="is no folder"):
        check(str(data_root), data_prefix=dict(img_path="images/training/scene_0.jpg"))
    with pytest.raises(DataError, match="~ is not read as a home"):
        check("~/scenes")


@pytest.mark.parametrize(("content", "said"), [("a\n".encode("utf-16"), "UTF-16"), (b"", "lists no samples")])
def test_list_of_samples_is_read_before_mmseg_fails_of_it(data_root: Path, content: bytes, said: str) -> None:
    (data_root / "list.txt").write_bytes(content)
    with pytest.raises(DataError, match=rf"ann_file '{data_root}/list\.txt' .*{said}"):
        check(str(data_root), ann_file="list.txt")


@pytest.mark.parametrize(
    ("missing", "said"),
    [
        ("scene_1.JPG", "there is 'scene_1.jpg': set img_suffix, or rename"),
        ("scene_1.jpg.jpg", "there is one without the second suffix"),
        ("\N{BYTE ORDER MARK}scene_1.jpg", "starts with a byte order mark"),
        ("..\\training\\scene_1.jpg", ""),
        ("sub\\scene_1.jpg", "there is one with / in place of"),
        ("nothing.jpg", ""),
    ],
)
def test_file_that_may_be_meant_is_named(data_root: Path, missing: str, said: str) -> None:
    folder = data_root / "images/training"
    (folder / "sub").mkdir()
    (folder / "sub/scene_1.jpg").write_bytes(b"")
    hint = hint_at(str(folder / missing), "img_path", "")
    assert said in hint and (bool(hint) == bool(said) or "\\" in missing)
