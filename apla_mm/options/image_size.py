"""The size of images, in all the places of a config that state it."""

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

Part: TypeAlias = dict[str, Any]
Size: TypeAlias = tuple[int, int]

_RESIZING = {"Resize", "RandomResize", "RandomChoiceResize", "ResizeShortestEdge"}
_CUTS = {"CenterCrop", "RandomCrop", "EfficientNetCenterCrop"}
_CUTS_AND_RESIZES = {"RandomResizedCrop", "EfficientNetRandomCrop"}  # to what they call scale
_BATCHES = {"SegDataPreProcessor", "BatchFixedSizePad"}


def set_image_size(
    model: Sequence[Part], pipelines: Sequence[Part], tta: Sequence[Part], size: Size, width_first: bool
) -> None:
    """Set images' size in a model and in pipelines, in place.

    What images are cropped or padded to becomes ``size``. The shorter side that they are resized to becomes the
    crop's height, or the shorter side of ``size`` where whole images have to fit or none are cropped; the longer side
    keeps its proportion to it. Where one of several sizes is chosen, all keep their proportion to the test's.

    Args:
        model: All dicts of the model's config.
        pipelines: All dicts of the pipelines, those for testing last.
        tta: All dicts of the pipeline for test-time augmentation.
        size: Height and width.
        width_first: The order in ``RandomCrop``: (width, height) as in mmdet, or (height, width) as in mmseg.

    Raises:
        ValueError: ``size`` is no square, and images are padded to squares.
    """
    cropped = {side for part in pipelines if _is_fixed_crop(part) for side in part["crop_size"]}
    squares = [part for part in model if part.get("pad_size_divisor") in cropped]
    if squares and size[0] != size[1]:
        raise ValueError(f"crop_size={size} must be one number: the data preprocessor pads images to squares")
    padded = squares or any(_pads_to_size(part) for part in (*model, *pipelines))
    one_size = padded or cropped or any(_kind(part) in _BATCHES and part.get("size") for part in model)
    side = size[0] if one_size and not padded else min(size)
    ratio = side / (_shorter_side(pipelines) or side)
    if one_size:
        _set_in_model(model, size)
    for part in squares:
        part["pad_size_divisor"] = size[0]
    for part in pipelines:
        if _is_fixed_crop(part):
            part["crop_size"] = size[::-1] if width_first else size
        elif _pads_to_size(part):
            part["size"] = size[::-1]
        elif _has_one_scale(part):
            part["scale"] = _times(part["scale"], side / min(part["scale"])) if part.get("keep_ratio") else size[::-1]
        else:
            _scale(part, ratio)
    for part in tta:
        _scale(part, ratio)


def set_classified_size(model: Sequence[Part], pipelines: Sequence[Part], size: Size) -> None:
    """Set the size of the images that a classifier sees, in its model and in pipelines, in place.

    What images are cut to becomes ``size``, and what whole ones are resized to; the side that they are resized to
    before a cut keeps its proportion to it.

    Args:
        model: All dicts of the model's config.
        pipelines: All dicts of the pipelines.
        size: Height and width.

    Raises:
        ValueError: ``size`` is no square, and a step takes one number.
    """
    cuts = [part["crop_size"] for part in pipelines if _kind(part) in _CUTS]
    before = max(max(cut) if isinstance(cut, list | tuple) else cut for cut in cuts) if cuts else None
    for part in pipelines:
        kind = _kind(part)
        key = "crop_size" if kind in _CUTS else "scale" if kind in (*_CUTS_AND_RESIZES, "Resize") else ""
        if key and key in part:
            if size[0] != size[1] and kind.startswith("EfficientNet"):
                raise ValueError(f"crop_size={size} must be one number: {kind} cuts squares")
            # mmcv's steps take (width, height), mmpretrain's own (height, width)
            pair = size[::-1] if kind in ("CenterCrop", "Resize") else size
            part[key] = size[0] if size[0] == size[1] and isinstance(part[key], int) else pair
        elif kind == "ResizeEdge":
            part["scale"] = max(1, round(part["scale"] * max(size) / before)) if before else min(size)
    _set_in_model(model, size)


def _shorter_side(pipelines: Sequence[Part]) -> int | None:
    """The shorter side that images are resized to in testing; None if it is not stated."""
    for part in reversed(pipelines):
        if _has_one_scale(part):
            return min(part["scale"])
    choices = [part["scales"] for part in pipelines if _kind(part) in _RESIZING and part.get("scales")]
    return max(
        (scale if isinstance(scale, int) else min(scale) for scales in choices for scale in scales), default=None
    )


def _set_in_model(model: Iterable[Part], size: Size) -> None:
    for part in model:
        if _kind(part) in _BATCHES:
            part["size"] = size
        if part.get("mode") == "slide":
            part["crop_size"], part["stride"] = size, tuple(side * 2 // 3 for side in size)
        if "img_size" in part:
            part["img_size"] = size


def _scale(part: Part, ratio: float) -> None:
    keys = ("scale", "scales", "max_size") if _kind(part) in _RESIZING else ()
    for key in (*keys, *(("crop_size",) if part.get("crop_type") == "absolute_range" else ())):
        if part.get(key) is not None:
            part[key] = _times(part[key], ratio)


def _times(value: Any, ratio: float) -> Any:
    """A number, or all numbers in tuples and lists, times a ratio."""
    if isinstance(value, list | tuple):
        return type(value)(_times(part, ratio) for part in value)
    return max(1, round(value * ratio))


def _kind(part: Part) -> str:
    """The type's name without its scope."""
    return str(part.get("type")).rpartition(".")[-1]


def _has_one_scale(part: Part) -> bool:
    scale = part.get("scale")
    pair = isinstance(scale, list | tuple) and len(scale) == 2 and all(isinstance(side, int) for side in scale)
    return pair and _kind(part) in ("Resize", "RandomResize")


def _pads_to_size(part: Part) -> bool:
    return _kind(part) in ("Pad", "BatchFixedSizePad") and bool(part.get("size"))


def _is_fixed_crop(part: Part) -> bool:
    return "crop_size" in part and part.get("crop_type", "absolute") == "absolute"
