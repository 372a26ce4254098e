import random

import pytest

from apla_mm.formats.label_maps.pairing import Rule, find_rule

KEYS = [f"{place}_{i}" for place in ("bonn", "jena_west") for i in (1, 2, 10, 11, 100)]


@pytest.mark.parametrize("image", ["images/{}", "{}", "img_{}_rgb", "a/photo{}"])
@pytest.mark.parametrize("label_map", ["masks/{}", "{}_mask", "img_{}_gt", "b/l{}-x"])
def test_the_rule_is_found_from_names_alone(image: str, label_map: str) -> None:
    if image == label_map:
        return
    images = {(None, image.format(key)) for key in KEYS}
    label_maps = {(None, label_map.format(key)): (None, image.format(key)) for key in KEYS[1:]}
    found = find_rule(images, label_maps)
    assert found is not None and found[1] == label_maps


def test_numbers_alone_are_enough_and_are_not_cut() -> None:
    images = {(None, f"img{i}") for i in range(1, 30)}
    label_maps = {(None, f"mask{i}"): (None, f"img{i}") for i in range(1, 10)}
    assert find_rule(images, label_maps) == (Rule("img", "", "mask", ""), label_maps)


def test_strays_and_other_splits_do_not_count() -> None:
    images = {(split, f"i/{i}") for split in ("train", "val") for i in range(20)}
    label_maps = {(split, f"m/{i}"): (split, f"i/{i}") for split in ("train", "val") for i in range(0, 20, 2)}
    strays = {("train", "m/thumbs"): None, ("train", "m/77"): None}
    shuffled = [*label_maps, *strays]
    random.Random(0).shuffle(shuffled)
    assert find_rule(images, shuffled) == (Rule("i/", "", "m/", ""), label_maps)


def test_names_that_share_nothing_have_no_rule() -> None:
    assert find_rule({(None, "ab"), (None, "cd")}, {(None, "12"), (None, "34")}) is None
    assert find_rule(set(), {(None, "12")}) is None
