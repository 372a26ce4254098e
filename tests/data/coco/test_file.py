import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.data_sets import edit_json

from apla_mm.data.coco.file import CocoFile
from apla_mm.data.reading import DataError


@pytest.fixture
def path(coco_root: Path) -> Path:
    return coco_root / "annotations/instances_train.json"


def test_columns_hold_what_the_file_says(path: Path) -> None:
    file = CocoFile(str(path))
    assert file.names == ["square", "disc"]
    assert [image["file_name"] for image in file.images] == [f"scene_{i}.jpg" for i in range(4)]
    np.testing.assert_array_equal(file.sizes, [[64, 48]] * 4)
    assert file.image.tolist() == [0, 0, 0, 1, 1, 2, 2, 3, 3]
    assert file.category.tolist() == [0, 1, 0, 0, 1, 0, 1, 0, 1]
    assert file.boxes.tolist() == [annotation["bbox"] for annotation in file.annotations]


def set_value(kind: str, index: int, key: str, value: Any) -> Callable[[dict], object]:
    return lambda content: content[kind][index].update({key: value})


def drop(kind: str, index: int, key: str) -> Callable[[dict], object]:
    return lambda content: content[kind][index].pop(key)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(
            lambda c: c.pop("images"), "has no list 'images' but annotations, categories: expected", id="no i"
        ),
        pytest.param(lambda c: c.pop("annotations"), "has no list 'annotations' but images, categories", id="no a"),
        pytest.param(lambda c: c.pop("categories"), "has no list 'categories' but images, annotations", id="no c"),
        pytest.param(lambda c: c.update(images={}), "has no list 'images' but images, annotations", id="not a list"),
        pytest.param(lambda c: c["images"].clear(), "lists no images: expected some in 'images'", id="no images"),
        pytest.param(lambda c: c["images"].append(7), r"images[4] is 7: expected an object", id="not an object"),
        pytest.param(drop("images", 1, "id"), 'images[1], {"file_name": "scene_1.jpg", ', id="no id"),
        pytest.param(set_value("images", 1, "id", [1]), "has the id [1]: expected an int", id="id of a wrong kind"),
        pytest.param(drop("images", 2, "file_name"), "has no 'file_name': expected the image's path", id="no name"),
        pytest.param(set_value("images", 2, "width", "64"), 'has the width "64": expected a number', id="width, text"),
        pytest.param(
            set_value("images", 2, "height", 0),
            'the image {"id": 12, "file_name": "scene_2.jpg", "width": 64, "height": 0} has no pixels',
            id="no pixels",
        ),
        pytest.param(drop("categories", 1, "name"), "categories[1], {\"id\": 2}, has no 'name'", id="no category name"),
        pytest.param(drop("annotations", 3, "id"), 'annotations[3], {"image_id": 11', id="no annotation id"),
        pytest.param(drop("annotations", 3, "image_id"), "has no 'image_id': expected the id of one", id="no image_id"),
        pytest.param(drop("annotations", 3, "category_id"), "has no 'category_id': expected", id="no category_id"),
        pytest.param(drop("annotations", 3, "bbox"), 'annotations[3], {"id": 103, ', id="no box"),
        pytest.param(
            drop("annotations", 3, "area"), "has no 'area': expected a number; without masks, the", id="no area"
        ),
        pytest.param(
            set_value("images", 1, "id", 10),
            'two images have the id 10, {"id": 10, "file_name": "scene_0.jpg", ',
            id="image ids",
        ),
        pytest.param(set_value("annotations", 4, "id", 101), "two annotations have the id 101, {", id="annotation ids"),
        pytest.param(
            set_value("categories", 1, "id", 1),
            'two categories have the id 1, {"id": 1, "name": "square"} and {"id": 1, "name": "disc"}: expected each',
            id="category ids",
        ),
        pytest.param(
            set_value("categories", 1, "name", "square"), "two categories have the name 'square', {", id="names"
        ),
        pytest.param(
            set_value("annotations", 4, "image_id", 77),
            "annotation 104 has the image_id 77, which none of the images has: expected one of 10, 11, 12, 13; remove",
            id="unknown image",
        ),
        pytest.param(
            set_value("annotations", 4, "image_id", "11"),
            "annotation 104 has the image_id '11', which none of the images has",
            id="image id as text",
        ),
        pytest.param(
            set_value("annotations", 4, "category_id", 0),
            "annotation 104 in image 11, 'scene_1.jpg', has the category_id 0, which none of the categories has: "
            "expected one of 1, 2; remove it, or add to categories",
            id="unknown category",
        ),
    ],
)
def test_file_that_contradicts_itself_is_an_error_that_names_the_entry(
    path: Path, change: Callable[[dict], object], expected: str
) -> None:
    edit_json(path, change)
    with pytest.raises(DataError, match=re.escape(expected)) as error:
        CocoFile(str(path))
    assert f"'{path}'" in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "<html>", '{"images": [', "\N{EURO SIGN}"])
def test_what_is_no_json_is_an_error_that_names_the_file(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-16") if text else b"")
    with pytest.raises(DataError, match=rf"^the annotation file '{path}' cannot be read: .*; expected JSON"):
        CocoFile(str(path))


def test_file_that_does_not_exist_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"^the annotation file '{tmp_path / 'no.json'}' cannot be read: "):
        CocoFile(str(tmp_path / "no.json"))


def test_list_of_annotations_is_no_coco_file(path: Path) -> None:
    path.write_text("[]")
    with pytest.raises(DataError, match="holds a list: expected COCO's format, an object with the lists images, "):
        CocoFile(str(path))


@pytest.mark.parametrize(
    ("box", "shown"),
    [
        ([5, 6, -1, 10], "[5, 6, -1, 10]"),
        ([5, 6, 10, -0.5], "[5, 6, 10, -0.5]"),
        ([5, 6, 10], "[5, 6, 10]"),
        ([5, 6, 10, 10, 1], "[5, 6, 10, 10, 1]"),
        ([], "[]"),
        ([5, 6, 10, None], "[5, 6, 10, null]"),
        ([5, 6, 10, "9"], '[5, 6, 10, "9"]'),
        ([5, 6, float("nan"), 9], "[5, 6, NaN, 9]"),
        ([5, 6, float("inf"), 9], "[5, 6, Infinity, 9]"),
    ],
)
def test_what_is_no_box_is_an_error_that_names_annotation_and_image(path: Path, box: list, shown: str) -> None:
    edit_json(path, lambda content: content["annotations"][5].update(bbox=box))
    with pytest.raises(DataError) as error:
        CocoFile(str(path))
    assert str(error.value) == (
        f"'{path}': annotation 105 in image 12, 'scene_2.jpg', has the box {shown}: expected four finite numbers "
        "[left, top, width, height], width and height not negative"
    )
