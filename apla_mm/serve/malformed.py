"""Requests that are wrong in one way or another, for load tests: drawn at random, the same for the same seed."""

import io
import random
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

Request = tuple[str, str, bytes, dict[str, str]]
_KINDS = ("PNG", "JPEG", "WEBP", "BMP")
_TYPES = (
    "application/json",
    "text/html",
    "multipart/form-data",
    "image/png; x=\x01",
    "a",
    "multipart/form-data; boundary=",
)
_QUERIES = ("format=gif", "score=2", "score=nan", "score=-1", "drawn=maybe", "format=png&format=", "score=%ff")
_TASKS = ("nothing", "..%2f..%2fetc%2fpasswd", "%00", "a/b", "a" * 2000, "%F0%9F%90%BB")


def malformed(task: str, count: int, seed: int = 0) -> Iterator[Request]:
    """Requests of which none is a whole image for a task.

    Args:
        task: One that is served.
        count: How many.
        seed: Of what is drawn.

    Returns:
        Method, path, body and headers of each.
    """
    draw = random.Random(seed)
    makers = (_cut, _noise, _bomb, _parts, _typed, _asked, _elsewhere, _large)
    for i in range(count):
        yield makers[i % len(makers)](draw, f"/v1/predict/{task}")


def _image(draw: random.Random, size: tuple[int, int] = (40, 30)) -> bytes:
    file = io.BytesIO()
    pixels = np.random.default_rng(draw.randrange(2**32)).integers(0, 255, (*size, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, draw.choice(_KINDS))
    return file.getvalue()


def _cut(draw: random.Random, path: str) -> Request:
    data = _image(draw)
    return "POST", path, data[: draw.randrange(1, len(data) // 2)], {}


def _noise(draw: random.Random, path: str) -> Request:
    return "POST", path, draw.randbytes(draw.randrange(0, 5000)), {}


def _bomb(draw: random.Random, path: str) -> Request:
    """A few bytes that say of themselves to be 10,000 pixels wide and more."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 10_000, draw.randrange(10_000, 2**31), 8, 2, 0, 0, 0)
    start = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    return "POST", path, start + struct.pack(">I", 1000) + b"IDAT" + draw.randbytes(1004), {}


def _parts(draw: random.Random, path: str) -> Request:
    file = b'--b\r\nContent-Disposition: form-data; name="f"; filename="/etc/passwd"\r\n\r\n'
    bodies = (
        file + _image(draw),
        file + _image(draw) + b"\r\n" + file + _image(draw) + b"\r\n--b--\r\n",
        b'--b\r\nContent-Disposition: form-data; name="f"\r\n\r\nx\r\n' * 50 + b"--b--\r\n",
        b"--b\r\n" + draw.randbytes(300),
        file + draw.randbytes(300) + b"\r\n--b--\r\n",
    )
    return "POST", path, draw.choice(bodies), {"Content-Type": "multipart/form-data; boundary=b"}


def _typed(draw: random.Random, path: str) -> Request:
    return "POST", path, draw.randbytes(100), {"Content-Type": draw.choice(_TYPES)}


def _asked(draw: random.Random, path: str) -> Request:
    return "POST", f"{path}?{draw.choice(_QUERIES)}", _image(draw), {}


def _elsewhere(draw: random.Random, path: str) -> Request:
    if draw.random() < 0.5:
        return "POST", f"/v1/predict/{draw.choice(_TASKS)}", _image(draw), {}
    return draw.choice(("GET", "PUT", "DELETE", "PATCH")), path, b"", {}


def _large(draw: random.Random, path: str) -> Request:
    return "POST", path, b"\xff\xd8" + bytes(draw.randrange(21, 24) * 2**20), {}
