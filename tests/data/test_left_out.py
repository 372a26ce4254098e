import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.fileio import list_dir_or_file
from mmseg.datasets import BaseSegDataset

from apla_mm.data.left_out import check_nothing_left_out, files_in, images_not_listed
from apla_mm.data.reading import DataError

pytestmark = pytest.mark.slow


def look(root: Path, **settings: Any) -> tuple[str, list[str]]:
    prefix = dict(img_path="images/training", seg_map_path="annotations/training")
    defaults = dict(data_root=str(root), data_prefix=prefix, metainfo=dict(classes=("left", "right")))
    dataset = BaseSegDataset(**{**defaults, **settings})
    return check_nothing_left_out(dataset, [dataset.get_data_info(i) for i in range(len(dataset))])


def add(root: Path, image: str, label_map: str = "") -> None:
    for kind, name, other in (("images", image, "scene_0.jpg"), ("annotations", label_map, "scene_0.png")):
        path = root / kind / "training" / name
        if name:
            path.parent.mkdir(exist_ok=True)
            shutil.copy(root / kind / "training" / other, path)


def test_nothing_else_in_the_folders_is_not_spoken_of(data_root: Path) -> None:
    assert look(data_root) == ("", [])


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".TIFF"])
def test_images_left_out_for_their_suffix_are_an_error(data_root: Path, suffix: str) -> None:
    add(data_root, f"more{suffix}", "more.png")
    with pytest.raises(DataError, match=rf"takes 3 files '\*\.jpg' .* leaves out 1 .* 1 '\*{suffix}': 'more{suffix}'"):
        look(data_root)
    (data_root / "list.txt").write_text("scene_0\nscene_2\n")
    said, warnings = look(data_root, ann_file="list.txt")
    assert "takes 2 of 4 image files" in said and not warnings


@pytest.mark.parametrize(
    ("image", "label_map"), [("scene_0.png", ""), ("depth.png", ""), ("sub/preview.JPG", ""), ("scene_1.JPG", "")]
)
def test_what_has_no_label_map_of_its_own_is_only_said(data_root: Path, image: str, label_map: str) -> None:
    add(data_root, image, label_map)
    said, warnings = look(data_root)
    assert f"1 more image files in '{data_root}/images/training' are not taken" in said and image in said
    assert not warnings


def test_images_and_label_maps_in_one_folder_are_in_order(data_root: Path) -> None:
    for path in (data_root / "annotations/training").iterdir():
        path.rename(data_root / "images/training" / path.name)
    assert look(data_root, data_prefix=dict(img_path="images/training", seg_map_path="images/training")) == ("", [])


def test_label_maps_without_an_image_are_a_warning(data_root: Path) -> None:
    (data_root / "images/training/scene_1.jpg").unlink()
    said, (warning,) = look(data_root)
    assert not said and "1 label maps '*.png'" in warning and "'scene_1.png'" in warning


def test_label_maps_of_other_kinds_are_not_spoken_of(data_root: Path) -> None:
    for path in list((data_root / "annotations/training").iterdir()):
        shutil.copy(path, path.with_name(f"{path.stem}_color.png"))
        path.rename(path.with_name(f"{path.stem}_ids.png"))
    assert look(data_root, seg_map_suffix="_ids.png") == ("", [])


def test_links_to_nowhere_are_an_error_that_names_them(data_root: Path) -> None:
    (data_root / "images/training/lost.jpg").symlink_to(data_root / "nowhere.jpg")
    with pytest.raises(DataError, match=r"1 images in .* are links to files that do not exist.*'lost\.jpg'"):
        look(data_root)


def test_files_are_those_that_mmengine_lists(data_root: Path, tmp_path: Path) -> None:
    add(data_root, "sub ü/one.jpg")
    add(data_root, ".hidden.jpg")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    shutil.copy(data_root / "images/training/scene_0.jpg", elsewhere / "linked.jpg")
    (data_root / "images/training/link").symlink_to(elsewhere)
    folder = str(data_root / "images/training")
    assert sorted(files_in(folder)) == sorted(list_dir_or_file(folder, list_dir=False, recursive=True))


def test_links_in_a_circle_end(data_root: Path) -> None:
    (data_root / "images/training/again").symlink_to(data_root / "images")
    assert "training/scene_0.jpg" in set(files_in(str(data_root / "images")))


def test_images_that_an_annotation_file_does_not_list_are_named(coco_root: Path) -> None:
    folder = str(coco_root / "images")
    said = images_not_listed(folder, [f"{folder}/scene_{i}.jpg" for i in range(4)])
    assert said == f"2 image files in '{folder}' are not taken: 'scene_4.jpg', 'scene_5.jpg'"
    assert images_not_listed(folder, [f"{folder}//scene_{i}.jpg" for i in range(6)]) == ""
    assert images_not_listed("s3://bucket/images", []) == images_not_listed(None, []) == ""
