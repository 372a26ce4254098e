from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmseg.datasets import ADE20KDataset, BaseSegDataset
from PIL import Image

from apla_mm.data.folders import check_folders
from apla_mm.data.labels.label_maps import check_segmentation
from apla_mm.data.reading import DataError

PREFIX = dict(img_path="images/training", seg_map_path="annotations/training")


def samples(root: Path, kind: type[BaseSegDataset] = BaseSegDataset, **settings: Any) -> list[dict]:
    metainfo = dict(classes=("left", "right"))
    dataset = kind(
        **{**dict(data_root=str(root), data_prefix=PREFIX, metainfo=metainfo), **settings}, serialize_data=False
    )
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def labels_with(value: int, dtype: type = np.uint8) -> np.ndarray:
    labels = np.zeros((40, 48), dtype)
    labels[3:5, 7] = value
    return labels


def write_labels(root: Path, labels: np.ndarray, name: str = "scene_1") -> Path:
    path = root / "annotations/training" / f"{name}.png"
    Image.fromarray(labels).save(path)
    return path


@pytest.mark.parametrize("time_limit", [None, 60.0])
def test_data_in_order_are_all_read(data_root: Path, time_limit: float | None) -> None:
    assert check_segmentation(samples(data_root), 2, time_limit) == 3


def test_images_without_label_maps_are_read(data_root: Path) -> None:
    infos = samples(data_root)
    for info in infos:
        del info["seg_map_path"]
    assert check_segmentation(infos, 2, None) == 3
    Path(infos[2]["img_path"]).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"the image '.*scene_2\.jpg' cannot be read"):
        check_segmentation(infos, 2, None)


@pytest.mark.parametrize(("kind", "what"), [("images", "image"), ("annotations", "label map")])
def test_missing_file_is_named_with_the_image_that_needs_it(data_root: Path, kind: str, what: str) -> None:
    infos = samples(data_root)
    (missing,) = (data_root / kind / "training").glob("scene_1.*")
    missing.unlink()
    image = data_root / "images/training/scene_1.jpg"
    with pytest.raises(DataError) as error:
        check_segmentation(infos, 2, 60)
    assert str(error.value) == f"the {what} '{missing}' is missing; '{image}' needs it"


def write_photo(root: Path) -> tuple[Path, Path]:
    """Stands in for scene_1: with little detail a file would be header for the most part."""
    noise = np.random.default_rng(0).integers(0, 255, (200, 300, 3), dtype=np.uint8)
    image, label_map = root / "images/training/scene_1.jpg", root / "annotations/training/scene_1.png"
    Image.fromarray(noise).save(image)
    Image.fromarray(noise[..., 0] % 2).save(label_map)
    return image, label_map


def truncate(share: float) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


@pytest.mark.parametrize(("kind", "what"), [("images", "image"), ("annotations", "label map")])
@pytest.mark.parametrize(
    "spoil",
    [
        pytest.param(truncate(0), id="empty"),
        pytest.param(truncate(0.1), id="start"),
        pytest.param(truncate(0.7), id="most"),
        pytest.param(lambda path: path.write_text("<html>404</html>"), id="text"),
    ],
)
def test_unreadable_file_is_named(data_root: Path, kind: str, what: str, spoil: Callable[[Path], Any]) -> None:
    path = write_photo(data_root)[kind == "annotations"]
    assert check_segmentation(samples(data_root), 2, None) == 3
    spoil(path)
    with pytest.raises(DataError, match=rf"the {what} '{path}' cannot be read: "):
        check_segmentation(samples(data_root), 2, None)


@pytest.mark.parametrize(("reduce_zero_label", "known"), [(False, (0, 1, 255)), (True, (0, 1, 2, 255))])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_known_and_ignored_labels_are_in_order(
    data_root: Path, reduce_zero_label: bool, known: tuple[int, ...], dtype: type
) -> None:
    for value in known:
        write_labels(data_root, labels_with(value, dtype))
        assert check_segmentation(samples(data_root, reduce_zero_label=reduce_zero_label), 2, None) == 3


@pytest.mark.parametrize(
    ("reduce_zero_label", "label", "dtype", "expected"),
    [
        (False, 2, np.uint8, "expected 0 to 1 for 2 classes (255 is ignored)"),
        (False, 254, np.uint8, "expected 0 to 1 for 2 classes (255 is ignored)"),
        (True, 3, np.uint8, "expected 1 to 2 for 2 classes (0 and 255 are ignored)"),
        (False, 256, np.uint16, "expected 0 to 1 for 2 classes (255 is ignored)"),  # 0, cut to eight bits
        (False, 65535, np.uint16, "expected 0 to 1 for 2 classes (255 is ignored)"),
        (True, 257, np.uint16, "expected 1 to 2 for 2 classes (0 and 255 are ignored)"),
    ],
)
def test_label_outside_the_classes_is_named_with_what_was_expected(
    data_root: Path, reduce_zero_label: bool, label: int, dtype: type, expected: str
) -> None:
    path = write_labels(data_root, labels_with(label, dtype))
    with pytest.raises(DataError) as error:
        check_segmentation(samples(data_root, reduce_zero_label=reduce_zero_label), 2, None)
    assert str(error.value).startswith(f"the label map '{path}' holds the labels [{label}]: {expected}; correct")


def test_subset_of_known_classes_allows_all_the_labels_of_the_full_set(data_root: Path) -> None:
    def check() -> int:
        return check_segmentation(samples(data_root, ADE20KDataset, metainfo=dict(classes=("wall", "sky"))), 2, None)

    write_labels(data_root, labels_with(150))
    assert check() == 3
    write_labels(data_root, labels_with(151))
    with pytest.raises(DataError, match=r"holds the labels \[151\]: expected 1 to 150 for 150 classes"):
        check()


def test_label_maps_with_a_palette_and_of_one_bit_are_in_order(data_root: Path) -> None:
    labels = Image.fromarray(labels_with(1))
    for mode, name in (("P", "scene_1"), ("1", "scene_2")):
        image = labels.copy() if mode == "P" else labels.point(lambda v: 255 * v).convert("1")
        if mode == "P":
            image.putpalette([0, 0, 0, 250, 100, 50])
        image.save(data_root / "annotations/training" / f"{name}.png")
        with Image.open(data_root / "annotations/training" / f"{name}.png") as written:
            assert written.mode == mode
    assert check_segmentation(samples(data_root), 2, None) == 3


@pytest.mark.parametrize("channels", [3, 4])
def test_label_map_in_colour_is_an_error(data_root: Path, channels: int) -> None:
    path = write_labels(data_root, np.zeros((40, 48, channels), np.uint8))
    with pytest.raises(DataError, match=rf"the label map '{path}' has {channels} channels: expected one"):
        check_segmentation(samples(data_root), 2, None)


@pytest.mark.parametrize("shape", [(40, 47), (48, 40), (20, 24)])
def test_label_map_of_another_size_is_an_error_that_gives_both(data_root: Path, shape: tuple[int, int]) -> None:
    path = write_labels(data_root, np.zeros(shape, np.uint8))
    image = data_root / "images/training/scene_1.jpg"
    with pytest.raises(DataError) as error:
        check_segmentation(samples(data_root), 2, None)
    sizes = f"'{path}' is {shape[1]} x {shape[0]} and its image '{image}' 48 x 40: expected equal sizes"
    assert str(error.value) == f"the label map {sizes}"


def test_time_limit_stops_the_reading_and_tells_how_far_it_came(data_root: Path) -> None:
    infos = samples(data_root) * 100
    assert check_segmentation(infos, 2, 0.0) < 300
    assert check_segmentation(infos, 2, 60.0) == 300


def test_what_the_time_does_not_reach_is_looked_for_and_not_read(data_root: Path) -> None:
    path = write_labels(data_root, labels_with(77), "scene_2")
    fine, also_fine, wrong = samples(data_root)
    infos = [fine, also_fine] * 100 + [wrong]
    assert check_segmentation(infos, 2, 0.0) < len(infos)
    with pytest.raises(DataError, match=r"scene_2\.png' holds the labels \[77\]"):
        check_segmentation(infos, 2, None)
    path.unlink()
    with pytest.raises(DataError, match=r"scene_2\.png' is missing"):
        check_segmentation(infos, 2, 0.0)


def config_of(root: Path, **settings: Any) -> dict:
    def loader(split: str) -> dict:
        prefix = dict(img_path=f"images/{split}", seg_map_path=f"annotations/{split}")
        return dict(dataset=dict(type="BaseSegDataset", data_root=str(root), data_prefix=prefix, **settings))

    return dict(train_dataloader=loader("training"), val_dataloader=loader("validation"), test_dataloader=None)


def test_folders_in_order_pass(data_root: Path) -> None:
    (data_root / "train.txt").write_text("scene_0\n")
    check_folders(config_of(data_root, ann_file="train.txt"))
    check_folders({})


@pytest.mark.parametrize(
    ("loader", "key", "folder"),
    [
        ("train_dataloader", "img_path", "images/training"),
        ("train_dataloader", "seg_map_path", "annotations/training"),
        ("val_dataloader", "seg_map_path", "annotations/validation"),
    ],
)
def test_missing_folder_is_named_with_its_key_and_the_cure(data_root: Path, loader: str, key: str, folder: str) -> None:
    (data_root / folder).rename(data_root / "moved")
    with pytest.raises(DataError) as error:
        check_folders(config_of(data_root))
    place = f"{loader}.dataset: data_prefix.{key} '{data_root / folder}' does not exist (looked in {Path.cwd()})"
    assert str(error.value).startswith(f"{place}; ")
    assert "data_root=FOLDER" in str(error.value)


def test_missing_annotation_file_is_named(data_root: Path) -> None:
    with pytest.raises(DataError, match=rf"train_dataloader\.dataset: ann_file '{data_root}/train\.txt' does not"):
        check_folders(config_of(data_root, ann_file="train.txt"))


@pytest.mark.parametrize("wrap", [lambda d: dict(dataset=d), lambda d: dict(datasets=[dict(type="Other"), d])])
def test_missing_folder_of_a_wrapped_data_set_is_named(data_root: Path, wrap: Callable[[dict], dict]) -> None:
    cfg = config_of(data_root)
    cfg["train_dataloader"]["dataset"] = wrap(cfg["train_dataloader"]["dataset"])
    check_folders(cfg)
    (data_root / "images/training").rename(data_root / "moved")
    with pytest.raises(DataError, match=r"train_dataloader\.dataset: data_prefix\.img_path '.*images/training'"):
        check_folders(cfg)


@pytest.mark.parametrize(
    ("root", "prefix"), [("s3://bucket/ade", "images/training"), ("", "s3://bucket/ade/images/training")]
)
def test_remote_folders_are_not_looked_for(root: str, prefix: str) -> None:
    dataset = dict(type="BaseSegDataset", data_root=root, data_prefix=dict(img_path=prefix))
    check_folders(dict(train_dataloader=dict(dataset=dataset)))
