import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import ROOT
from helpers.data_sets import edit_json
from helpers.processes import run_python
from mmdet.datasets import CocoDataset, CocoPanopticDataset, LVISV1Dataset
from mmseg.datasets import ADE20KDataset
from PIL import Image

from apla_mm.data.coco.check import check_annotations, check_images, is_coco
from apla_mm.data.reading import DataError

pytestmark = pytest.mark.slow

CLASSES = ("square", "disc")
SHARED = ROOT.parent / "shared/data"


def file_of(root: Path, split: str = "train") -> Path:
    return root / f"annotations/instances_{split}.json"


def check(root: Path, classes: Any = CLASSES, split: str = "train", **settings: Any) -> str:
    return check_annotations(str(file_of(root, split)), classes, **settings)


def labels_of(root: Path, classes: Any = CLASSES, **settings: Any) -> list[int]:
    """The labels that mmdet reads, of all images in turn."""
    dataset = CocoDataset(
        ann_file=str(file_of(root)), data_prefix=dict(img=""), metainfo=dict(classes=classes), **settings
    )
    return [instance["bbox_label"] for i in range(len(dataset)) for instance in dataset[i]["instances"]]


def add(content: dict, **annotation: Any) -> None:
    """Adds the annotation 999, of a square of 10 x 10 if nothing else is said."""
    defaults = dict(id=999, image_id=13, category_id=1, bbox=[5, 6, 10, 10], area=100, iscrowd=0)
    polygon = [[5, 6, 15, 6, 15, 16, 5, 16]]
    content["annotations"].append({**defaults, "segmentation": polygon, **annotation})


@pytest.mark.parametrize("masks", [False, True])
@pytest.mark.parametrize("scored", [False, True])
def test_file_in_order_is_summed_up(coco_root: Path, masks: bool, scored: bool) -> None:
    truths = [str(file_of(coco_root))] if scored else []
    assert check(coco_root, masks=masks, truths=truths) == "4 images and 9 annotations in order"
    assert check(coco_root, split="val", masks=masks) == "2 images and 4 annotations in order"


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ([60, 6, 10, 10], "has the box [60.0, 6.0, 10.0, 10.0], 6.0 pixels outside its image of 64 x 48: expected"),
        ([5, 40, 10, 10], "has the box [5.0, 40.0, 10.0, 10.0], 2.0 pixels outside"),
        ([-2.5, 6, 10, 10], "has the box [-2.5, 6.0, 10.0, 10.0], 2.5 pixels outside"),
        ([70, 6, 0, 10], "has the box [70.0, 6.0, 0.0, 10.0], 6.0 pixels outside"),
        ([5, -3, 10, 10], "has the box [5.0, -3.0, 10.0, 10.0], 3.0 pixels outside"),
    ],
)
def test_box_outside_its_image_is_an_error_that_names_both(coco_root: Path, box: list, expected: str) -> None:
    edit_json(file_of(coco_root), lambda content: add(content, bbox=box))
    with pytest.raises(DataError) as error:
        check(coco_root)
    assert str(error.value).startswith(f"'{file_of(coco_root)}': annotation 999 in image 13, 'scene_3.jpg', {expected}")


def test_error_tells_how_many_more_boxes_are_wrong(coco_root: Path) -> None:
    def change(content: dict) -> None:
        for annotation in content["annotations"][2:5]:
            annotation["bbox"] = [64, 0, 10, 10]

    edit_json(file_of(coco_root), change)
    with pytest.raises(DataError, match=r"annotation 102 in .* of 64 x 48 \(so do 2 more annotations\): expected"):
        check(coco_root)


@pytest.mark.parametrize(("tolerance", "outside", "fine"), [(1.0, 0.9, True), (1.0, 1.1, False), (3.0, 2.9, True)])
def test_box_may_reach_out_of_its_image_by_the_tolerance(
    coco_root: Path, tolerance: float, outside: float, fine: bool
) -> None:
    edit_json(file_of(coco_root), lambda content: add(content, bbox=[54 + outside, 6, 10, 10]))
    if fine:
        assert "10 annotations in order" in check(coco_root, box_tolerance=tolerance)
    else:
        with pytest.raises(DataError, match=r"box_tolerance=\.\.\."):
            check(coco_root, box_tolerance=tolerance)


@pytest.mark.parametrize(
    "annotation",
    [
        dict(bbox=[5, 6, 0, 10]),
        dict(bbox=[5, 6, 10, 0]),
        dict(bbox=[5, 6, 0.5, 10]),
        dict(bbox=[64, 6, 1, 10]),
        dict(area=0),
        dict(ignore=1),
    ],
)
def test_what_mmdet_leaves_out_is_counted(coco_root: Path, annotation: dict) -> None:
    edit_json(file_of(coco_root), lambda content: add(content, **annotation))
    assert len(labels_of(coco_root)) == 9
    said = "10 annotations in order; 1 are left out, with a box under a pixel, no area, or the mark 'ignore'"
    assert check(coco_root, masks=True).endswith(said)


@pytest.mark.parametrize("without", [(), ("segmentation",)])
def test_what_mmdet_leaves_out_needs_no_mask(coco_root: Path, without: tuple) -> None:
    def change(content: dict) -> None:
        add(content, bbox=[5, 6, 0, 0], segmentation=[])
        for key in without:
            del content["annotations"][-1][key]

    edit_json(file_of(coco_root), change)
    assert "1 are left out" in check(coco_root, masks=True)


RUN_LENGTHS = dict(size=[48, 64], counts=[0, 480, 2592])


@pytest.mark.parametrize(
    "mask",
    [
        [[5, 6, 15, 6, 15, 16]],
        [[5, 6, 15, 6, 15, 16], [20.5, 6, 25, 6, 25, 16, 20, 16]],
        [[5, 6, 15, 6], [5, 6, 15, 6, 15, 16]],  # mmdet drops the first
        RUN_LENGTHS,
        dict(size=[48, 64], counts="0`?a1"),
    ],
)
def test_polygons_and_run_lengths_are_masks(coco_root: Path, mask: Any) -> None:
    edit_json(file_of(coco_root), lambda content: add(content, segmentation=mask))
    assert check(coco_root, masks=True) == "4 images and 10 annotations in order"


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        (None, "has no segmentation, and the config asks for masks"),
        ([], "has no segmentation, and the config asks for masks"),
        ([[5, 6, 15, 6]], "has a segmentation that holds no polygon"),
        ([[5, 6, 15, 6, 15, 16, 5]], "has a segmentation that holds no polygon"),
        ([5, 6, 15, 6, 15, 16], "has a segmentation that holds no polygon"),
        ([[]], "has a segmentation that holds no polygon"),
        ("mask.png", "has a segmentation that is neither polygons nor run lengths"),
        (dict(size=[48, 64]), "has a segmentation that is neither polygons nor run lengths"),
        (dict(RUN_LENGTHS, size=[64, 48]), "has a mask of size [64, 48] in an image of [48, 64]"),
        (dict(counts=[3072]), "has a mask of size None in an image of [48, 64]"),
    ],
)
def test_what_is_no_mask_is_an_error_where_masks_are_asked_for(coco_root: Path, mask: Any, expected: str) -> None:
    edit_json(file_of(coco_root), lambda content: add(content, segmentation=mask))
    assert "10 annotations in order" in check(coco_root)
    with pytest.raises(DataError) as error:
        check(coco_root, masks=True)
    named = f"'{file_of(coco_root)}': annotation 999 in image 13, 'scene_3.jpg', {expected}: expected polygons"
    assert str(error.value).startswith(named)


def test_classes_without_a_category_are_named_with_an_option_to_paste(coco_root: Path) -> None:
    with pytest.raises(DataError) as error:
        check(coco_root, CocoDataset.METAINFO["classes"])
    assert "has no category for the classes person, bicycle, car, motorcycle, airplane and 75 more: " in str(
        error.value
    )
    assert str(error.value).endswith("the file's categories are --cfg-options classes=square,disc")


def test_order_of_the_classes_must_be_the_files_since_mmdet_counts_by_that(coco_root: Path) -> None:
    assert labels_of(coco_root, ("disc", "square")) == labels_of(coco_root, ("square", "disc"))
    with pytest.raises(DataError) as error:
        check(coco_root, ("disc", "square"))
    assert str(error.value) == (
        f"'{file_of(coco_root)}' lists the categories in another order than the classes: label 0 would be 'square' and "
        "be called 'disc'. Expected the file's order, which has to be one in all files: --cfg-options "
        "classes=square,disc"
    )


def test_order_is_that_of_the_list_and_not_of_the_ids(coco_root: Path) -> None:
    edit_json(file_of(coco_root), lambda content: content["categories"].reverse())
    assert labels_of(coco_root, ("disc", "square"))[:2] == [1, 0]  # a square, a disc
    assert "in order" in check(coco_root, ("disc", "square"))
    with pytest.raises(DataError, match="classes=disc,square"):
        check(coco_root)


def test_categories_that_are_no_class_are_counted(coco_root: Path) -> None:
    ignored = "categories that are no class, and how many annotations are ignored with them"
    assert check(coco_root, ("disc",)) == f"4 images and 9 annotations in order; {ignored}: square (5)"
    assert labels_of(coco_root, ("disc",)) == [0] * 4


@pytest.mark.parametrize("classes", ["square", ("square", "square")])
def test_classes_that_are_no_names_are_an_error(coco_root: Path, classes: Any) -> None:
    with pytest.raises(DataError, match=r"must be names that differ, as in metainfo=dict\(classes=\('cat',\)\)"):
        check(coco_root, classes)


def leave_squares(content: dict) -> None:
    content["annotations"] = [a for a in content["annotations"] if a["category_id"] == 1]


@pytest.mark.parametrize(
    ("change", "settings", "expected"),
    [
        (leave_squares, {}, "of 5 annotations, 5 are of other categories"),
        (lambda c: c["annotations"].clear(), {}, "of 0 annotations, 0 are of other categories"),
        (lambda c: [a.update(iscrowd=1) for a in c["annotations"]], {}, "and 4 are crowds"),
        (
            lambda c: [a.update(area=0) for a in c["annotations"]],
            {},
            "4 have boxes under a pixel, no area, or the mark",
        ),
        (lambda c: None, dict(min_size=49), "of 4 images, 4 are smaller than filter_cfg.min_size=49"),
    ],
)
def test_nothing_to_learn_from_is_an_error_that_tells_what_there_is(
    coco_root: Path, change: Callable[[dict], object], settings: dict, expected: str
) -> None:
    edit_json(file_of(coco_root), change)
    with pytest.raises(DataError, match=re.escape(expected)) as error:
        check(coco_root, ("disc",), **settings)
    assert f"'{file_of(coco_root)}' has no object of the classes disc that can be used: " in str(error.value)
    assert "The file's categories are --cfg-options classes=square,disc" in str(error.value)


def test_mmdet_itself_dies_of_images_that_are_all_too_small_without_a_word_on_them(coco_root: Path) -> None:
    with pytest.raises(ValueError, match="need at least one array to concatenate"):
        labels_of(coco_root, filter_cfg=dict(min_size=49))
    assert "in order" in check(coco_root, min_size=48)


def test_list_of_images_alone_is_enough_to_predict_for(coco_root: Path) -> None:
    edit_json(file_of(coco_root), lambda content: content.pop("annotations"))
    assert check(coco_root, annotated=False) == "4 images and 0 annotations in order"


@pytest.mark.parametrize("scored", [False, True])
def test_evaluation_asks_for_iscrowd(coco_root: Path, scored: bool) -> None:
    edit_json(file_of(coco_root), lambda content: content["annotations"][1].pop("iscrowd"))
    if scored:
        with pytest.raises(DataError, match=r"has no 'iscrowd': expected 0 or 1, which the evaluation reads"):
            check(coco_root, truths=[str(file_of(coco_root))])
    else:
        assert "in order" in check(coco_root)


def test_annotation_0_is_pointed_out_where_predictions_are_scored(coco_root: Path) -> None:
    edit_json(file_of(coco_root), lambda content: content["annotations"][0].update(id=0))
    assert "id 0 as missed" not in check(coco_root)
    assert "id 0 as missed" in check(coco_root, truths=[str(file_of(coco_root))])


def test_evaluator_must_compare_with_the_same_images_and_categories(coco_root: Path) -> None:
    copy = coco_root / "copy.json"
    copy.write_bytes(file_of(coco_root).read_bytes())
    assert "in order" in check(coco_root, truths=[str(copy)])
    with pytest.raises(DataError, match=rf"compares with '{file_of(coco_root, 'val')}', and .* has other images: let"):
        check(coco_root, truths=[str(file_of(coco_root, "val"))])
    edit_json(copy, lambda content: content["categories"].reverse())
    with pytest.raises(DataError, match=rf"compares with '{copy}', and .* has other categories: let"):
        check(coco_root, truths=[str(copy)])


def images(root: Path) -> list[tuple[str, int, int]]:
    return [(str(root / f"images/scene_{i}.jpg"), 64, 48) for i in range(6)]


def read(root: Path, time_limit: float | None = None, flag: str = "color") -> int:
    return check_images(images(root), time_limit, flag=flag, backend="cv2")


def test_images_in_order_are_all_read(coco_root: Path) -> None:
    assert read(coco_root) == read(coco_root, 60.0) == 6


def test_missing_image_is_looked_for_even_without_time(coco_root: Path) -> None:
    path = coco_root / "images/scene_4.jpg"
    path.write_bytes(b"no image")
    many = images(coco_root)[:4] * 50 + images(coco_root)[4:]
    assert check_images(many, 0.0, flag="color", backend="cv2") < len(many)
    with pytest.raises(DataError, match=rf"^the image '{path}' cannot be read: "):
        read(coco_root)
    path.unlink()
    with pytest.raises(DataError, match=rf"^the image '{path}' is missing: expected the file_name of the annotation"):
        check_images(many, 0.0, flag="color", backend="cv2")


def test_image_of_another_size_is_an_error_that_gives_both(coco_root: Path) -> None:
    path = coco_root / "images/scene_2.jpg"
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(path)
    with pytest.raises(DataError) as error:
        read(coco_root)
    expected = f"the image '{path}' is 60 x 40 and its annotation file says 64 x 48: expected equal sizes"
    assert str(error.value) == f"{expected}; correct the annotation file"


def test_image_that_its_exif_data_turn_is_told_from_others(coco_root: Path) -> None:
    path = coco_root / "images/scene_2.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    with Image.open(path) as image:
        image.save(path, exif=exif)
    with pytest.raises(DataError, match=r"scene_2.jpg' is 48 x 64 and its annotation file says 64 x 48: .*; its EXIF"):
        read(coco_root)
    assert read(coco_root, flag="color_ignore_orientation") == 6  # the cure that the error names


@pytest.mark.parametrize(
    ("cls", "coco", "plain"),
    [
        (CocoDataset, True, True),
        (LVISV1Dataset, True, False),
        (CocoPanopticDataset, True, False),
        (ADE20KDataset, False, False),
        (None, False, False),
    ],
)
def test_data_sets_of_mmdet_are_recognised(cls: type | None, coco: bool, plain: bool) -> None:
    assert (is_coco(cls), is_coco(cls, plain=True)) == (coco, plain)


def test_recognising_them_imports_nothing_of_mmdet() -> None:
    code = "import sys; from apla_mm.data.coco.check import is_coco; print(is_coco(dict), 'mmdet' in sys.modules)"
    assert run_python(code).stdout.strip().endswith("False False")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("coco_sample/annotations/instances_train2017.json", "coco_sample/train2017"),
        ("coco_sample/annotations/instances_val2017.json", "coco_sample/val2017"),
        ("animals/annotations/instances_train.json", "animals/images/train"),
        ("animals/annotations/instances_val.json", "animals/images/val"),
    ],
)
def test_genuine_data_are_in_order(name: str, folder: str) -> None:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"needs {path}")
    content = json.loads(path.read_text())
    animals = ("bear", "deer", "elephant", "otter", "rhesus monkey", "tiger", "turtle")
    classes = animals if "animals" in name else CocoDataset.METAINFO["classes"]
    said = check_annotations(str(path), classes, masks=True, truths=[str(path)], min_size=32)
    counts = f"{len(content['images'])} images and {len(content['annotations'])} annotations in order"
    assert said.startswith(counts) and "left out" not in said and "ignored" not in said
    listed = [(str(SHARED / folder / p["file_name"]), p["width"], p["height"]) for p in content["images"]]
    assert check_images(listed, None, flag="color", backend="cv2") == len(listed)
