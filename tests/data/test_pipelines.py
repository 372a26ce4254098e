from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile, Resize
from mmseg.datasets.transforms import LoadAnnotations, PackSegInputs
from PIL import Image

from apla_mm.data.labels.label_maps import check_segmentation
from apla_mm.data.pipelines import SampleReader, turned_by_exif
from apla_mm.data.reading import DataError, UnreadableError


class MaskToLabels:
    """A user's own transform: masks of 0 and 255 become labels."""

    def __call__(self, results: dict[str, Any]) -> dict[str, Any]:
        results["gt_seg_map"] = (results["gt_seg_map"] > 127).astype(np.uint8)
        return results


def info_of(root: Path, **settings: Any) -> dict[str, Any]:
    paths = dict(
        img_path=str(root / "images/training/scene_1.jpg"), seg_map_path=str(root / "annotations/training/scene_1.png")
    )
    return {**paths, "reduce_zero_label": False, "label_map": None, "seg_fields": [], **settings}


def turn(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(root / "images/training/scene_1.jpg") as image:
        image.save(root / "images/training/scene_1.jpg", exif=exif)


@pytest.mark.parametrize("backend", ["cv2", "pillow"])
@pytest.mark.parametrize(("color_type", "turned"), [("color", True), ("color_ignore_orientation", False)])
def test_images_are_read_as_the_pipeline_reads_them(
    data_root: Path, backend: str, color_type: str, turned: bool
) -> None:
    turn(data_root)
    assert turned_by_exif(info_of(data_root)["img_path"])
    load = LoadImageFromFile(color_type=color_type, imdecode_backend=backend)
    reader = SampleReader([load, Resize(scale=(8, 8)), LoadAnnotations(), PackSegInputs()])
    image, labels = reader.read(info_of(data_root))
    assert image is not None and labels is not None
    assert image.shape[:2] == ((48, 40) if turned else (40, 48)) and labels.shape == (40, 48)
    if turned:
        with pytest.raises(DataError, match=r"EXIF data say .*color_type='color_ignore_orientation'"):
            check_segmentation([info_of(data_root)], 2, None, reader=reader)
    else:
        assert check_segmentation([info_of(data_root)], 2, None, reader=reader) == 1


@pytest.mark.parametrize(("settings", "expected"), [({}, {0, 1, 255}), (dict(reduce_zero_label=True), {0, 255})])
def test_labels_are_those_after_reduce_zero_label(data_root: Path, settings: dict, expected: set[int]) -> None:
    load = LoadAnnotations()
    _, labels = SampleReader([LoadImageFromFile(), load]).read(info_of(data_root, **settings))
    assert set(np.unique(labels)) == expected
    assert load.reduce_zero_label is None  # the pipeline's own transform is as it was


def test_transforms_that_are_not_of_openmmlab_may_convert_labels(data_root: Path) -> None:
    info = info_of(data_root)
    Image.fromarray(np.arange(40 * 48, dtype=np.uint8).reshape(40, 48) % 2 * 255).save(info["seg_map_path"])
    reader = SampleReader([LoadImageFromFile(), LoadAnnotations(), MaskToLabels(), PackSegInputs()])
    assert set(np.unique(reader.read(info)[1])) == {0, 1}
    assert check_segmentation([info], 2, None, reader=reader) == 1


def test_pipeline_without_label_maps_needs_none(data_root: Path) -> None:
    info = info_of(data_root)
    Path(info["seg_map_path"]).unlink()
    reader = SampleReader([LoadImageFromFile(), PackSegInputs()])
    assert not reader.reads_label_maps and reader.read(info)[1] is None
    assert check_segmentation([info], 2, None, reader=reader) == 1


@pytest.mark.parametrize(("values", "cut"), [([0, 1, 255], {}), ([0, 256], {256: 0}), ([1, 300, 65535], {300: 44})])
@pytest.mark.parametrize("dtype", [np.uint16, np.int32])
def test_labels_that_8_bits_do_not_hold_are_found(data_root: Path, values: list, cut: dict, dtype: type) -> None:
    path = data_root / "annotations/training/scene_1.tif"
    Image.fromarray(np.array([values], dtype)).save(path)
    found = SampleReader().cut_labels(str(path))
    assert found == ({**cut, 65535: 255} if 65535 in values else cut)


def test_transform_that_fails_of_no_file_is_an_error_that_cannot_be_skipped(data_root: Path) -> None:
    reader = SampleReader([LoadImageFromFile(), LoadAnnotations(reduce_zero_label=True)])
    with pytest.raises(DataError, match=r"scene_1\.png': LoadAnnotations of the pipeline fails: Initialize") as error:
        reader.read(info_of(data_root))
    assert not isinstance(error.value, UnreadableError)


def test_image_that_the_pipeline_skips_is_unreadable(data_root: Path) -> None:
    reader = SampleReader([LoadImageFromFile(ignore_empty=True)])
    info = info_of(data_root)
    Path(info["img_path"]).write_bytes(b"")
    assert reader.skips_unreadable
    with pytest.raises(UnreadableError, match="ignore_empty=True"):
        reader.read(info)


def test_palettes_are_indices_by_pillow_and_colours_by_cv2(data_root: Path) -> None:
    info = info_of(data_root)
    image = Image.open(info["seg_map_path"]).convert("L")
    image.putpalette(list(range(256)) * 3)
    image.save(info["seg_map_path"])
    assert check_segmentation([info], 2, None) == 1
    reader = SampleReader([LoadImageFromFile(), LoadAnnotations(imdecode_backend="cv2")])
    with pytest.raises(DataError, match=r"3 channels: expected one.*imdecode_backend='pillow'"):
        check_segmentation([info], 2, None, reader=reader)
