"""How results are compared: shares of all that is there, and nothing that is no number passes."""

from typing import Any

import numpy as np
import pytest
from helpers.optional import needs

from apla_mm.export.reference import compare


def objects(count: int, **changed: Any) -> dict[str, np.ndarray]:
    """Objects far from one another, all of one label."""
    boxes = np.arange(count)[:, None] * 50.0 + np.array([0, 0, 10, 10])
    return dict(boxes=boxes, scores=0.9 - 0.04 * np.arange(count), labels=np.zeros(count, int)) | changed


def test_images_without_objects_say_nothing_of_those_that_have_some() -> None:
    labels = np.zeros(20, int)
    labels[7] = 1
    found = compare([objects(20), *4 * [objects(0)]], [objects(20, labels=labels), *4 * [objects(0)]])
    assert found.equal == 0.95 and found.images == 5
    assert compare([objects(0)], [objects(0)]).equal == 1


def test_an_object_that_only_one_of_them_found_is_not_equal() -> None:
    assert compare([objects(3)], [objects(4)]).equal == compare([objects(4)], [objects(3)]).equal == 0.75


@pytest.mark.parametrize("name", ["boxes", "scores"])
def test_what_is_no_number_is_an_infinite_difference(name: str) -> None:
    given = objects(3)
    given[name] = given[name].copy()
    given[name][1] = np.nan
    assert compare([objects(3)], [given]).difference == np.inf


def test_pixels_of_all_images_count_alike() -> None:
    small = dict(labels=np.zeros((1, 10), int), scores=np.ones((1, 10)))
    large = dict(labels=np.zeros((9, 10), int), scores=np.ones((9, 10)))
    wrong = dict(small, labels=np.ones((1, 10), int))
    assert compare([small, large], [wrong, large]).equal == 0.9
    nothing = dict(large, scores=np.full((9, 10), np.nan))
    assert compare([small, large], [small, nothing]).difference == np.inf


def test_segments_are_compared_whatever_their_numbers() -> None:
    needs("mmdet")
    plain = np.zeros((10, 10), np.int32)
    plain[:4], plain[4:7], plain[7:9] = 1000, 2000, 1
    other = np.where(plain >= 1000, 3000 - plain, plain)
    assert compare([dict(segments=plain)], [dict(segments=other)]) == (0, 1, 1)
    other[0, :5] = 1
    assert compare([dict(segments=plain)], [dict(segments=other)]) == pytest.approx((0.05, 2 / 4, 1))
