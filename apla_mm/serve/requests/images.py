"""Pixels of an upload, once its header says that they are few enough."""

import io
import warnings

import mmcv
import numpy as np
from PIL import Image

from .limits import Limits, RefusedError

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  #: that are taken, by their content


def decode(data: bytes, limits: Limits) -> np.ndarray:
    """Decode an image as :meth:`apla_mm.Predictor.predict` decodes its file.

    Args:
        data: The file's bytes.
        limits: On its pixels, which are checked before anything is decoded.

    Returns:
        (H, W, 3) uint8, RGB, turned as its EXIF says.

    Raises:
        RefusedError: It is none, of another format, too large, or cut off.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=FORMATS)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise _too_large("too many pixels", limits) from None
    except Exception:  # damaged headers fail in any way
        raise RefusedError(
            415, f"the upload is no image of {', '.join(FORMATS)}", "convert it, or send it again if it was cut off"
        ) from None
    with image:
        width, height = image.size
        if width * height > limits.max_pixels:
            raise _too_large(f"{width} x {height} pixels", limits)
        try:
            image.draft("RGB", (1, 1))  # of a JPEG, an eighth: enough to see whether all of it is there
            image.load()
            # by the readers of training, whose rounding models know
            pixels = mmcv.imfrombytes(data, flag="color", channel_order="rgb")
        except Exception as error:  # damaged data fail in any way
            reason = f"{type(error).__name__}: {error}"[:200]
            raise RefusedError(400, f"the image cannot be decoded: {reason}", "send it again, whole") from None
    if pixels is None or pixels.shape[:2] not in ((height, width), (width, height)):
        raise RefusedError(400, "the image cannot be decoded: it is damaged", "send it again, whole")
    return pixels


def _too_large(size: str, limits: Limits) -> RefusedError:
    return RefusedError(413, f"the image has {size}: {limits.max_pixels:,} are the limit", "send a smaller one")
