"""Panoptic files made of objects: equal to ones that were drawn by themselves, by what panopticapi says."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.data_sets import edit_json, write_panoptic
from helpers.tools import call_tool
from panopticapi.evaluation import pq_compute_single_core
from panopticapi.utils import rgb2id
from PIL import Image

from apla_mm.convert.panoptic import make_panoptic
from apla_mm.data.coco.panoptic_check import PanopticMap, check_maps, check_panoptic_file
from apla_mm.data.coco.panoptic_file import PanopticFile
from apla_mm.data.reading import DataError

TOOL = ROOT / "tools/dataset_converters/make_panoptic.py"
META = dict(classes=("square", "disc", "ground"), thing_classes=("square", "disc"), stuff_classes=("ground",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_panoptic(tmp_path)


def test_they_are_what_was_drawn(root: Path) -> None:
    """PQ by panopticapi: 100 but for the disc's polygon of 16 corners."""
    out = root / "made/panoptic.json"
    said = make_panoptic(root / "annotations/instances_train.json", out, rest="ground")
    assert said.endswith("panoptic.json: 4 images, 13 segments; 0 objects lie wholly below others")
    check_panoptic_file(str(out), META, truths=[str(out)])
    made = PanopticFile(str(out))
    names = {key: image["file_name"].replace(".jpg", ".png") for key, image in made.images.items()}
    folder = out.with_suffix("")
    ids = {key: frozenset(s["id"] for s in segments) for key, segments in made.segments.items()}
    maps = [PanopticMap(str(folder / name), ids[key], (64, 48)) for key, name in names.items()]
    assert check_maps(maps, None) == 4
    drawn = json.loads((root / "annotations/panoptic_train.json").read_text())["annotations"]
    own = json.loads(out.read_text())
    categories = {category["id"]: category for category in own["categories"]}
    assert {(c["name"], c["isthing"]) for c in own["categories"]} == {("square", 1), ("disc", 1), ("ground", 0)}
    to_ours = {1: 1, 2: 2, 9: 3}
    for annotation in drawn:
        for segment in annotation["segments_info"]:
            segment["category_id"] = to_ours[segment["category_id"]]
    folders = str(root / "annotations/panoptic_train"), str(folder)
    pairs = list(zip(drawn, own["annotations"], strict=True))
    quality = pq_compute_single_core(0, pairs, *folders, categories)
    assert {k: (c.tp, c.fp, c.fn) for k, c in quality.pq_per_cat.items()} == {1: (4, 0, 0), 2: (4, 0, 0), 3: (4, 0, 0)}
    assert quality[1].iou > 3.9 and quality[2].iou > 3.5 and quality[3].iou > 3.9
    for annotation in own["annotations"]:
        ids = rgb2id(np.asarray(Image.open(folder / annotation["file_name"])))
        for segment in annotation["segments_info"]:
            rows, columns = np.nonzero(ids == segment["id"])
            left, top, width, height = segment["bbox"]
            assert segment["area"] == len(rows)
            assert (left, top) == (columns.min(), rows.min())
            assert (left + width - 1, top + height - 1) == (columns.max(), rows.max())


def test_stuff_of_label_maps_lies_below_objects_and_above_the_rest(root: Path) -> None:
    labels = root / "labels"
    labels.mkdir()
    for scene in range(4):
        array = np.zeros((48, 64), np.uint8)
        array[:, 32:] = 7
        Image.fromarray(array).save(labels / f"scene_{scene}.png")
    out = root / "panoptic.json"
    arguments = (root / "annotations/instances_train.json", out, "--rest", "ground", "--label-maps", labels)
    call_tool(TOOL, *arguments, "--stuff", "sky=7", "snow=8")
    content = json.loads(out.read_text())
    assert [c["name"] for c in content["categories"]] == ["square", "disc", "sky", "snow", "ground"]
    first = content["annotations"][1]
    ids = rgb2id(np.asarray(Image.open(root / "panoptic" / first["file_name"])))
    names = {s["id"]: content["categories"][s["category_id"] - 1]["name"] for s in first["segments_info"]}
    seen = np.vectorize(names.get)(ids)
    assert set(seen[:, :32][seen[:, :32] != "square"]) <= {"ground", "disc"}
    assert set(seen[:, 32:].ravel()) == {"sky", "disc"} and "snow" not in names.values()


def test_of_objects_that_overlap_the_smaller_is_on_top(root: Path) -> None:
    path = root / "annotations/instances_train.json"

    def enlarge(content: dict) -> None:
        square = content["annotations"][3]
        square.update(bbox=[0, 0, 64, 48], segmentation=[[0, 0, 64, 0, 64, 48, 0, 48]], area=64 * 48)

    edit_json(path, enlarge)
    said = make_panoptic(path, root / "panoptic.json", rest="ground")
    content = json.loads((root / "panoptic.json").read_text())
    seen = [s["category_id"] for s in content["annotations"][1]["segments_info"]]
    assert sorted(seen) == [1, 2] and "0 objects lie wholly below" in said


def test_what_is_not_in_order_is_refused_and_nothing_written(root: Path) -> None:
    objects, out = root / "annotations/instances_train.json", root / "new/panoptic.json"
    with pytest.raises(ValueError, match="stuff too, and none is named: give --rest NAME.* or --label-maps FOLDER"):
        make_panoptic(objects, out)
    with pytest.raises(ValueError, match=r"stuff needs names that things have not: .*stuff \['disc'\]"):
        make_panoptic(objects, out, rest="disc")
    with pytest.raises(ValueError, match="must end in .json"):
        make_panoptic(objects, out.with_suffix(".txt"), rest="ground")
    with pytest.raises(DataError, match="label map '.*scene_0.png' cannot be read"):
        make_panoptic(objects, out, label_maps=root, stuff=dict(sky=1))
    assert not out.parent.exists() or not any(out.parent.iterdir())
    edit_json(objects, lambda c: c["annotations"][0].pop("segmentation"))
    with pytest.raises(DataError, match="has no segmentation"):
        make_panoptic(objects, out, rest="ground")
    out.parent.mkdir(exist_ok=True)
    out.write_text("mine")
    with pytest.raises(FileExistsError, match="is there already"):
        make_panoptic(objects, out, rest="ground")
    assert out.read_text() == "mine"


def test_the_tool_says_what_is_wrong_in_a_line(root: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: the annotation file '.*no.json' cannot be read"):
        call_tool(TOOL, root / "no.json", root / "out.json", "--rest", "a")
    with pytest.raises(SystemExit):
        call_tool(TOOL, root / "annotations/instances_train.json", root / "out.json", "--stuff", "sky=1")
