"""Label maps in colour, made label maps of class indices where what their colours mean is known."""

import io
from collections.abc import Sequence
from pathlib import PurePosixPath
from threading import Lock

import numpy as np
from PIL import Image

from ...data.reading import DataError, check_evenly
from ...text import first_few
from ..class_files import ClassFile
from ..files import Files
from ..made import Made


def index_maps(files: Files, paths: Sequence[str], table: ClassFile | None, made: Made) -> dict[str, str]:
    """Write label maps of one channel for those of several that have a class for each colour.

    Of label maps whose channels are equal, one channel is taken. Others are left as they are where no file names
    colours; to read them is refused then.

    Args:
        files: The files.
        paths: Label maps among them.
        table: What names classes, and colours.
        made: The folder for those that are made.

    Returns:
        The absolute path of what was made, for the path of each that it was made of.

    Raises:
        DataError: One has a colour that ``table`` does not have, or cannot be written.
    """
    indexed, lock = dict[str, str](), Lock()

    def convert(path: str) -> None:
        labels = _labels(files, path, table)
        if labels is None:
            return
        buffer = io.BytesIO()
        Image.fromarray(labels).save(buffer, "PNG")
        written = made.write(f"label_maps/{PurePosixPath(path).with_suffix('.png')}", buffer.getvalue())
        with lock:
            indexed[path] = written

    check_evenly(paths, convert, None)
    return indexed


def _labels(files: Files, path: str, table: ClassFile | None) -> np.ndarray | None:
    """The classes of a label map in colour, uint8 (H, W); None of one that is not, or cannot be read."""
    try:
        with Image.open(files.full(path)) as image:
            if image.mode not in ("RGB", "RGBA") or image.format == "JPEG":
                return None
            pixels = np.asarray(image)[..., :3]
    except (OSError, ValueError, Image.DecompressionBombError):
        return None  # who reads all label maps says so
    if table is not None and table.colours is not None:
        return _look_up(files.full(path), pixels, table)
    return pixels[..., 0].copy() if (pixels == pixels[..., :1]).all() else None


def _look_up(path: str, pixels: np.ndarray, table: ClassFile) -> np.ndarray:
    codes = _codes(pixels)
    known = _codes(np.array(table.colours, np.uint8))
    order = np.argsort(known)
    place = np.searchsorted(known[order], codes).clip(max=len(known) - 1)
    labels = order[place]
    strange = known[labels] != codes
    if strange.any():
        colours, counts = np.unique(pixels[strange], axis=0, return_counts=True)
        shown = first_few((str(tuple(colours[i].tolist())) for i in np.argsort(-counts)), 6)
        raise DataError(
            f"the label map '{path}' has, in {strange.mean():.1%} of its pixels, colours that '{table.path}' does not "
            f"have: {shown}. Add them there, or make the label map again if it was resized with its colours blended"
        )
    return labels.astype(np.uint8)


def _codes(colours: np.ndarray) -> np.ndarray:
    """One number for each colour of uint8 (..., 3)."""
    return colours.astype(np.int64) @ np.array([65536, 256, 1])
