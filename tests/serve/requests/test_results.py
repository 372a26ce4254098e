"""JSON and PNG of predictions that no small model here gives."""

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apla_mm.api.prediction import Prediction, colours_of
from apla_mm.serve.requests.limits import RefusedError
from apla_mm.serve.requests.results import Format, encode

IMAGE = np.zeros((2, 3, 3), np.uint8)


def told(found: Prediction) -> Any:
    content, kind = encode(found, "t", Format.JSON, None, False)
    assert kind == "application/json"
    return json.loads(content)


def array(text: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))))


def test_panoptic_segments_are_as_coco_has_them() -> None:
    labels = np.array([[0, 0, 1], [2, -1, 1]])
    segments = np.array([[1000, 2000, 1], [2, 133, 1]])
    one = told(Prediction(IMAGE, ("disc", "square", "ground"), label_map=labels, segments=segments))
    assert array(one["label_map"]["data"]).tolist() == [[0, 0, 1], [2, 255, 1]] and one["label_map"]["none"] == 255
    red, green, blue = np.moveaxis(array(one["segments"]["data"]).astype(int), -1, 0)
    ids = red + 256 * green + 65536 * blue
    infos = {info["id"]: (info["label"], info["area"]) for info in one["segments"]["infos"]}
    assert ids[1, 1] == 0 and len(np.unique(ids)) == 5
    assert [infos[i] for i in (ids[0, 0], ids[0, 1], ids[0, 2], ids[1, 0])] == [(0, 1), (0, 1), (1, 2), (2, 1)]
    assert one["pixels"] == {"0": 2, "1": 2, "2": 1}


@pytest.mark.parametrize(("classes", "none"), [(255, 255), (256, 65535)])
def test_label_maps_of_many_classes_have_two_bytes(classes: int, none: int) -> None:
    labels = np.array([[0, classes - 1, -1]])
    one = told(Prediction(IMAGE[:1], tuple(map(str, range(classes))), label_map=labels))
    assert array(one["label_map"]["data"]).tolist() == [[0, classes - 1, none]] and one["label_map"]["none"] == none
    content, kind = encode(Prediction(IMAGE[:1], ("a",), label_map=labels * 0), "t", Format.PNG, None, False)
    assert kind == "image/png" and np.asarray(Image.open(io.BytesIO(content))).tolist() == [[0, 0, 0]]


def test_classifiers_give_scores_and_no_label_map() -> None:
    found = Prediction(IMAGE, ("a", "b"), class_scores=np.float32([0.25, 0.75]))
    assert told(found)["class_scores"] == [0.25, 0.75]
    with pytest.raises(RefusedError, match="gives no label map"):
        encode(found, "t", Format.PNG, None, False)


def test_no_objects_are_empty_lists() -> None:
    empty = np.zeros((0, 4), np.float32)
    found = Prediction(
        IMAGE, ("a",), boxes=empty, scores=empty[:, 0], labels=empty[:, 0].astype(int), masks=np.zeros((0, 2, 3), bool)
    )
    assert {key: told(found)[key] for key in ("boxes", "scores", "labels", "masks")} == dict(
        boxes=[], scores=[], labels=[], masks=[]
    )


def test_labels_without_names_are_not_wrapped() -> None:
    one = told(Prediction(IMAGE[:1], (), label_map=np.array([[300, 255, -1]])))
    assert array(one["label_map"]["data"]).tolist() == [[300, 255, 65535]] and one["label_map"]["none"] == 65535
    assert one["pixels"] == {"255": 1, "300": 1}


def test_names_are_drawn_as_they_are() -> None:
    names = ("5$_$", "$x^{$", r"a\b")
    boxes = np.array([[1, 1, 30, 30]] * 3, np.float32)
    image = np.zeros((40, 80, 3), np.uint8)
    labels, palette = np.arange(3), colours_of(names, None)
    found = Prediction(image, names, boxes=boxes, scores=np.ones(3, np.float32), labels=labels, palette=palette)
    content, kind = encode(found, "t", Format.DRAWN, None, False)
    assert kind == "image/png" and np.asarray(Image.open(io.BytesIO(content))).any()
