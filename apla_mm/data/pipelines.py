"""Images and label maps, read by a data set's own pipeline."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import mmcv
import numpy as np
from PIL import Image

from .folders import is_local
from .reading import DataError, UnreadableError, read_image

_OPENMMLAB = {"mmcv", "mmengine", "mmseg", "mmdet", "mmpretrain"}
_EIGHT_BITS = {"1", "L", "P", "LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr"}  # Pillow's modes


def steps_of(node: Any) -> Iterator[Any]:
    """The transforms of a pipeline, and those inside others."""
    if isinstance(node, list | tuple):
        for step in node:
            yield from steps_of(step)
    elif node is not None:
        yield node
        for name in ("transforms", "subroutines"):
            yield from steps_of(getattr(node, name, None))


def reads_label_maps(step: Any) -> bool:
    """Whether a transform reads label maps from files."""
    return bool(getattr(step, "with_seg", False))


class SampleReader:
    """Reads samples as a pipeline does before it changes their geometry.

    Of the pipeline it runs what loads, and what is not OpenMMLab's own, which may convert labels. The others resize,
    cut, and change colours.

    Args:
        pipeline: A data set's pipeline; None for images and label maps by mmseg's defaults.
    """

    def __init__(self, pipeline: Any = None) -> None:
        if pipeline is None:
            from mmseg.datasets.transforms import LoadAnnotations

            pipeline = [mmcv.transforms.LoadImageFromFile(), LoadAnnotations()]
        steps = [step for step in steps_of(pipeline) if not isinstance(getattr(step, "transforms", None), list | tuple)]
        packs = [i for i, step in enumerate(steps) if type(step).__name__.startswith("Pack")]
        # copies: mmseg's LoadAnnotations takes on what the first sample says of reduce_zero_label
        self._steps = [copy.copy(step) for step in steps[: packs[0] if packs else None] if _is_run(step)]
        self._label_step = next((step for step in self._steps if reads_label_maps(step)), None)
        self._converts = any(not _is_stock(step) for step in self._steps)

    @property
    def reads_label_maps(self) -> bool:
        """Whether label maps are read at all."""
        return self._label_step is not None

    @property
    def reads_eight_bits(self) -> bool:
        """Whether label maps are cast to 8 bits, as OpenMMLab's transforms do."""
        return _cuts(self._label_step)

    @property
    def skips_unreadable(self) -> bool:
        """Whether an image that cannot be read is passed over in training, as the pipeline says."""
        return any(getattr(step, "ignore_empty", False) for step in self._steps)

    def read(self, info: Mapping[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None]:
        """What the pipeline makes of an image and of its label map; None for what it does not load.

        Args:
            info: What the data set says of the sample.

        Raises:
            UnreadableError: A file cannot be read.
            DataError: A transform fails of something else.
        """
        results = {**info, "seg_fields": []}
        for step in self._steps:
            if reads_label_maps(step):
                if info.get("seg_map_path") is not None:
                    results = _load(step, results, "label map", info["seg_map_path"])
            elif type(step).__name__.startswith("Load"):
                results = _load(step, results, "image", info.get("img_path"))
            else:
                results = _convert(step, results)
        return results.get("img"), results.get("gt_seg_map")

    def raw_labels(self, path: str) -> np.ndarray:
        """A label map as its file holds it."""
        return _read_raw(self._label_step, "label map", path).squeeze()

    def cut_labels(self, path: str) -> dict[Any, int]:
        """The labels of a file that do not fit the 8 bits which OpenMMLab makes of them, and what becomes of them."""
        if not _cuts(self._label_step) or _has_eight_bits(path):
            return {}
        values = np.unique(self.raw_labels(path))
        with np.errstate(invalid="ignore"):
            eight_bits = values.astype(np.uint8)
        wrong = np.flatnonzero(values != eight_bits)
        return {values[i].item(): int(eight_bits[i]) for i in wrong}

    def file_labels(self, path: str, loaded: np.ndarray, wrong: np.ndarray) -> list[Any]:
        """The labels as the file has them, where those that are loaded are wrong."""
        if not self._converts and _cuts(self._label_step):
            raw = self.raw_labels(path)
            if raw.shape == loaded.shape:
                loaded = raw
        return np.unique(loaded[wrong]).tolist()


def _is_stock(step: Any) -> bool:
    return type(step).__module__.partition(".")[0] in _OPENMMLAB


def _is_run(step: Any) -> bool:
    return type(step).__name__.startswith("Load") or not _is_stock(step)


def _cuts(step: Any) -> bool:
    """Whether a transform casts label maps to 8 bits, as those of OpenMMLab do."""
    load = getattr(type(step), "_load_seg_map", None)
    return getattr(load, "__module__", "").partition(".")[0] in _OPENMMLAB


def _has_eight_bits(path: str) -> bool:
    """Whether an image file's header says that it holds no more than 8 bits a channel."""
    try:
        with Image.open(path) as image:
            return image.mode in _EIGHT_BITS
    except (OSError, ValueError):
        return False


def _load(step: Any, results: dict[str, Any], what: str, path: Any) -> dict[str, Any]:
    try:
        loaded = step(results)
    except Exception as error:
        if isinstance(path, str):
            _read_raw(step, what, path)  # raises if the file is to blame
        raise DataError(f"the {what} '{path}': {type(step).__name__} of the pipeline fails: {error}") from error
    if loaded is None:  # ignore_empty
        raise UnreadableError(f"the {what} '{path}' cannot be read, and {type(step).__name__}(ignore_empty=True) skips")
    return loaded


def _convert(step: Any, results: dict[str, Any]) -> dict[str, Any]:
    """What a transform that is not OpenMMLab's makes of a sample; it may need what is not run here."""
    try:
        return step({key: value.copy() if isinstance(value, np.ndarray) else value for key, value in results.items()})
    except Exception:
        return results


def _read_raw(step: Any, what: str, path: str) -> np.ndarray:
    how = dict(flag=getattr(step, "color_type", "unchanged"), backend=getattr(step, "imdecode_backend", "cv2"))
    return read_image(path, what, getattr(step, "backend_args", None), **how)


def turned_by_exif(path: str, backend_args: Any = None) -> bool:
    """Whether an image's EXIF data say that it is to be turned by a right angle."""
    if not is_local(path, backend_args):
        return False
    try:
        with Image.open(path) as image:
            return image.getexif().get(0x0112, 1) >= 5
    except (OSError, ValueError):
        return False
