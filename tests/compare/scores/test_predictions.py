"""Label maps beside the images that they are of."""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from apla_mm.compare.scores.predictions import boxes_figure, label_map_of, predictions_figure


def test_of_files_of_one_name_that_of_the_images_folder_is_taken(tmp_path: Path) -> None:
    for folder, label in (("a", 1), ("b", 2)):
        (tmp_path / "out" / folder).mkdir(parents=True)
        (tmp_path / "images" / folder).mkdir(parents=True)
        Image.new("L", (6, 4), label).save(tmp_path / "out" / folder / "s0.png")
        Image.new("RGB", (6, 4)).save(tmp_path / "images" / folder / "s0.jpg")
    for folder, label in (("a", 1), ("b", 2)):
        found = label_map_of(tmp_path / "out", str(tmp_path / "images" / folder / "s0.jpg"))
        assert found is not None and found.shape == (4, 6) and np.unique(found).tolist() == [label]
    assert label_map_of(tmp_path / "out", "elsewhere/s1.jpg") is None


def test_figure_has_a_row_for_each_image_and_a_column_for_each_method(tmp_path: Path) -> None:
    for method in ("full", "head"):
        (tmp_path / method).mkdir()
        Image.new("L", (6, 4), 3).save(tmp_path / method / "s0.png")
    Image.new("RGB", (6, 4)).save(tmp_path / "s0.jpg")
    folders, truth = {m: tmp_path / m for m in ("full", "head")}, str(tmp_path / "full/s0.png")
    figure = predictions_figure([(str(tmp_path / "s0.jpg"), truth)], folders, 5)
    assert [axes.get_title() for axes in figure.axes] == ["image", "label map", "full", "head"]
    assert all(axes.get_images() for axes in figure.axes)


def test_boxes_of_each_method_and_true_ones_are_drawn_on_the_images_they_are_of(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{name}.jpg")
    truth = dict(
        images=[dict(id=7, file_name="part/a.jpg"), dict(id=8, file_name="part/b.jpg")],
        categories=[dict(id=3, name="cat")],
        annotations=[dict(id=1, image_id=8, category_id=3, bbox=[1, 2, 30, 20])],
    )
    found = [dict(image_id=7, category_id=3, bbox=[0, 0, 9, 9], score=s) for s in (0.9, 0.5, 0.1)]
    for name, content in (("truth", truth), ("full", found), ("head", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    files = {method: tmp_path / f"{method}.json" for method in ("full", "head")}
    figure = boxes_figure(tmp_path / "truth.json", [tmp_path / "a.jpg", tmp_path / "b.jpg"], files)
    assert [(axes.get_title(), len(axes.patches)) for axes in figure.axes] == [
        ("truth", 0), ("full", 2), ("head", 0), ("truth", 1), ("full", 0), ("head", 0)
    ]  # fmt: skip
    assert figure.axes[3].patches[0].get_bbox().bounds == (1, 2, 30, 20)
    assert [text.get_text() for text in figure.axes[1].texts] == ["cat 0.90", "cat 0.50"]
