"""Label maps beside the images that they are of."""

from pathlib import Path

import numpy as np
from PIL import Image

from apla_mm.compare.predictions import label_map_of, predictions_figure


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
