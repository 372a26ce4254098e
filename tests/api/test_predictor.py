"""What is taken for an image."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

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
