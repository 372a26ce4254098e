import io
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from helpers.deltas import write_tasks
from helpers.optional import needs
from PIL import Image

for package in ("mmdet", "fastapi", "fastapi_offline", "uvicorn", "python_multipart", "prometheus_client"):
    needs(package)

from helpers.serving import Server, serving  # noqa: E402


@pytest.fixture(scope="session")
def deltas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a segmentor's delta and a detector's, and their base; not to be written to."""
    return write_tasks(tmp_path_factory.mktemp("deltas"))


@pytest.fixture(scope="session")
def server(deltas: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of both; its folder is not to be written to."""
    with serving(
        deltas, tmp_path_factory.mktemp("server") / "log.txt", "--max-mib", "0.5", "--max-pixels", 40_000
    ) as one:
        yield one


def picture(seed: int = 0, size: tuple[int, int] = (72, 60), format: str = "PNG") -> bytes:
    """An image of blots, as a file's bytes."""
    colours = np.random.default_rng(seed).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(colours).resize(size).save(file, format)
    return file.getvalue()


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., bytes]:
    """Makes an image of blots, as a file's bytes: of a seed, a size and a format."""
    return picture
