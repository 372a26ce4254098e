import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor

import apla_mm  # noqa: F401  before anything that imports torchvision

pytest_plugins = ["helpers.fixtures"]


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def assert_same() -> Callable[[Any, Any], None]:
    """Fails unless two state dicts are equal to the bit."""

    def check(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
        assert a.keys() == b.keys()
        for name in a:
            x, y = a[name].cpu().contiguous(), b[name].cpu().contiguous()
            assert (x.dtype, x.shape) == (y.dtype, y.shape), name
            assert torch.equal(x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)), name

    return check


def _draw_scene(scene: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """An image of a square and a disc, in the first also of a crowd, and their annotations."""
    noise = np.random.default_rng(scene).integers(0, 120, (12, 16, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((64, 48))
    draw = ImageDraw.Draw(image)
    x, y, side = 3 + 2 * scene, 5 + scene, 18
    draw.rectangle((x, y, x + side - 1, y + side - 1), fill=(230, 60, 40))
    radius, centre = 10, np.array([46.0 - scene, 30.0 - scene])
    draw.ellipse([*(centre - radius), *(centre + radius)], fill=(60, 210, 230))
    angles = np.arange(16) * np.pi / 8
    circle = centre + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    square = [x, y, x + side, y, x + side, y + side, x, y + side]
    shapes = [
        dict(category_id=1, bbox=[x, y, side, side], area=side**2, iscrowd=0, segmentation=[square]),
        dict(
            category_id=2,
            bbox=[*(centre - radius), 2 * radius, 2 * radius],
            area=3.06 * radius**2,
            iscrowd=0,
            segmentation=[circle.round(2).ravel().tolist()],
        ),
    ]
    if scene == 0:
        draw.rectangle((0, 40, 63, 47), fill=(230, 60, 40))
        # counts go down the columns: 40 pixels outside, 8 inside, 64 times
        crowd = dict(size=[48, 64], counts=[40, 8] * 64)
        shapes.append(dict(category_id=1, bbox=[0, 40, 64, 8], area=512, iscrowd=1, segmentation=crowd))
    return image, shapes


@pytest.fixture(scope="session")
def make_coco_data_set() -> Callable[[Path], Path]:
    """Writes a data set in COCO's format, of the classes 'square' and 'disc', with boxes and masks.

    Its images, ``images/scene_0.jpg`` to ``scene_5.jpg``, have 64 x 48 pixels. The first four are listed in
    ``annotations/instances_train.json``, the others in ``instances_val.json``. Image ids start at 10, annotation ids
    at 100, category ids at 1. The first image also has a crowd of squares.
    """

    def make(root: Path) -> Path:
        for folder in ("images", "annotations"):
            (root / folder).mkdir(parents=True, exist_ok=True)
        for split, scenes in (("train", range(4)), ("val", range(4, 6))):
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for scene in scenes:
                image, shapes = _draw_scene(scene)
                name = f"scene_{scene}.jpg"
                image.save(root / "images" / name)
                images.append(dict(id=10 + scene, file_name=name, width=64, height=48))
                for shape in shapes:
                    annotations.append(dict(id=100 + len(annotations), image_id=10 + scene, **shape))
            categories = [dict(id=1, name="square"), dict(id=2, name="disc")]
            content = dict(images=images, annotations=annotations, categories=categories)
            (root / f"annotations/instances_{split}.json").write_text(json.dumps(content))
        return root

    return make
