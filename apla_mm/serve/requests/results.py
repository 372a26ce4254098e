"""Predictions as JSON and PNG."""

import base64
import io
import json
import threading
from enum import Enum
from typing import Any

import numpy as np
from PIL import Image

from ...api.prediction import Prediction
from .limits import RefusedError

_drawing = threading.Lock()  # matplotlib, which draws boxes, is for one thread at a time


class Format(str, Enum):
    """How a prediction is answered."""

    JSON = "json"
    PNG = "png"
    DRAWN = "drawn"


def encode(found: Prediction, task: str, how: Format, score: float | None, drawn: bool) -> tuple[bytes, str]:
    """A prediction as the bytes of an answer.

    Args:
        found: The prediction.
        task: By what.
        how: As what.
        score: Of boxes, the lowest that are told; None for all in JSON and 0.3 where they are drawn.
        drawn: Whether JSON also has the drawn image.

    Returns:
        The bytes, and their media type.

    Raises:
        RefusedError: A label map is asked for of a task that gives none.
    """
    if how is Format.DRAWN:
        return _drawn(found, score), "image/png"
    if how is Format.PNG:
        if found.label_map is None:
            raise RefusedError(
                400, f"task {task!r} gives no label map, of which format=png is", "ask for format=json or format=drawn"
            )
        return _label_png(found), "image/png"
    told = as_json(found, task, 0.0 if score is None else score)
    if drawn:
        told["drawn"] = _text(_drawn(found, score))
    return json.dumps(told, allow_nan=False, separators=(",", ":")).encode(), "application/json"


def as_json(found: Prediction, task: str, score: float = 0.0) -> dict[str, Any]:
    """A prediction as values that JSON has; docs/serving.md describes them.

    Args:
        found: The prediction.
        task: By what.
        score: Boxes with a lower one are left out.
    """
    height, width = found.image.shape[:2]
    palette = [] if found.palette is None else found.palette.tolist()
    told: dict[str, Any] = dict(task=task, height=height, width=width, classes=list(found.classes), palette=palette)
    if found.label_map is not None:
        told["label_map"] = dict(
            encoding="png;base64",
            none=_none(found),
            data=_text(_label_png(found)),
        )
        present, counts = np.unique(found.label_map[found.label_map >= 0], return_counts=True)
        told["pixels"] = {str(label): int(count) for label, count in zip(present, counts, strict=True)}
    if found.segments is not None:
        told["segments"] = _segments(found)
    if found.class_scores is not None:
        told["class_scores"] = found.class_scores.tolist()
    if found.boxes is not None:
        assert found.scores is not None and found.labels is not None
        kept = found.scores >= score
        told["boxes"], told["scores"] = found.boxes[kept].tolist(), found.scores[kept].tolist()
        told["labels"] = found.labels[kept].tolist()
        if found.masks is not None:
            told["masks"] = [_rle(mask) for mask in found.masks[kept]]
    return told


def _drawn(found: Prediction, score: float | None) -> bytes:
    with _drawing:
        image = found.draw() if score is None else found.draw(threshold=score)
    return _png(image)


def _none(found: Prediction) -> int:
    """What pixels of no class are in a label map's PNG."""
    assert found.label_map is not None
    count = max(len(found.classes), int(found.label_map.max(initial=-1)) + 1)  # there may be no names
    return 255 if count <= 255 else 65535


def _label_png(found: Prediction) -> bytes:
    assert found.label_map is not None
    none = _none(found)
    labels = np.where(found.label_map < 0, none, found.label_map)
    return _png(Image.fromarray(labels.astype(np.uint8 if none == 255 else np.uint16)))


def _segments(found: Prediction) -> dict[str, Any]:
    """As COCO has panoptic results: a PNG whose red + 256 green + 256 * 256 blue are ids from 1 on, 0 for none."""
    assert found.segments is not None and found.label_map is not None
    there = found.label_map >= 0
    values, places = np.unique(found.segments[there], return_inverse=True)
    ids = np.zeros(found.segments.shape, np.int64)
    ids[there] = places + 1
    pixels = np.stack([ids % 256, ids // 256 % 256, ids // 65536], -1).astype(np.uint8)
    labels = {int(value): int(found.label_map[found.segments == value][0]) for value in values}
    areas = np.bincount(places, minlength=len(values))
    infos = [
        dict(id=i + 1, label=labels[int(value)], area=int(area))
        for i, (value, area) in enumerate(zip(values, areas, strict=True))
    ]
    return dict(encoding="png;base64", infos=infos, data=_text(_png(Image.fromarray(pixels))))


def _rle(mask: np.ndarray) -> dict[str, Any]:
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return dict(size=list(encoded["size"]), counts=encoded["counts"].decode())


def _png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
