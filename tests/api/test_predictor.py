"""What is taken for an image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apla_mm.api.prediction import colours_of
from apla_mm.api.predictor import as_rgb


@pytest.mark.parametrize("image", [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), b"no image"])
def test_images_that_are_none_are_named(image: Any, tmp_path: Path) -> None:
    if isinstance(image, bytes):
        (tmp_path / "a.jpg").write_bytes(image)
        image = tmp_path / "a.jpg"
    with pytest.raises(ValueError, match="expected|cannot be read"):
        as_rgb(image)
    with pytest.raises(FileNotFoundError, match="there is no image"):
        as_rgb(tmp_path / "no.jpg")


@pytest.mark.parametrize("palette", [[[0, 0, 256]], [[0, -1, 0]], [1, 2, 3], [[0.5, 0, 0]], [[1, 2]]])
def test_a_palette_that_is_none_is_told(palette: Any) -> None:
    with pytest.raises(ValueError, match="the palette is no list of colours"):
        colours_of(("a",), palette)


def test_colours_are_those_of_the_palette_or_differ() -> None:
    assert colours_of(("a", "b"), [(1, 2, 3), (255, 0, 0)]).tolist() == [[1, 2, 3], [255, 0, 0]]
    assert len(np.unique(colours_of(tuple("abcdef"), None), axis=0)) == 6 and len(colours_of((), [])) == 1
