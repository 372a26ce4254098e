"""Checks of a segmentation data set's images and label maps, with errors that name the file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..folders import is_local
from ..pipelines import SampleReader, turned_by_exif
from ..reading import DataError, check_evenly
from ..similar_files import hint_at
from .label_counts import LabelCounts
from .label_rules import LabelRules


def check_segmentation(
    infos: Sequence[Mapping[str, Any]],
    num_classes: int,
    time_limit: float | None,
    unreadable: list[str] | None = None,
    *,
    reader: SampleReader | None = None,
    rules: LabelRules | None = None,
    counts: LabelCounts | None = None,
    channels: int | None = None,
) -> int:
    """Check that images and label maps can be read, match in size, and hold known labels only.

    Files are all looked for first. Then they are read in an order spread evenly over the data set, by threads, until
    the time is over.

    Args:
        infos: What mmseg's data sets say of each sample (``img_path``, ``seg_map_path``, ``reduce_zero_label``,
            ``label_map``).
        num_classes: Number of classes.
        time_limit: Seconds, None for all samples.
        unreadable: See :func:`check_evenly`.
        reader: Reads as the data set's pipeline does; None for mmseg's defaults.
        rules: Which labels are allowed; None for the classes and 255.
        counts: Takes what is in the label maps.
        channels: How many channels the model normalizes; None if it does not say.

    Returns:
        How many samples were read.

    Raises:
        DataError: Something is wrong with a sample.
    """
    reader = reader or SampleReader()
    check = _SampleCheck(reader, rules or LabelRules(num_classes), counts or LabelCounts(), channels)
    files = [("image", "img_path"), ("label map", "seg_map_path")][: 1 + reader.reads_label_maps]
    for info in infos:
        for what, key in files:
            path = info.get(key)
            if path is not None and is_local(path) and not Path(path).is_file():
                hint = hint_at(path, key, info["img_path"])
                raise DataError(f"the {what} '{path}' is missing; '{info['img_path']}' needs it{hint}")
    return check_evenly(infos, check, time_limit, unreadable)


class _SampleCheck:
    """The check of one sample after the other, by several threads."""

    def __init__(self, reader: SampleReader, rules: LabelRules, counts: LabelCounts, channels: int | None) -> None:
        self.reader, self.rules, self.counts, self.channels = reader, rules, counts, channels

    def __call__(self, info: Mapping[str, Any]) -> None:
        image, labels = self.reader.read(info)
        if image is not None and self.channels is not None:
            found = image.shape[2] if image.ndim == 3 else 1
            if 1 not in (found, self.channels) and found != self.channels:
                raise DataError(
                    f"the image '{info['img_path']}' has {found} channels, and the data preprocessor's mean "
                    f"{self.channels}: read it with LoadImageFromFile(color_type='color'), or give mean and std as many"
                )
        path = info.get("seg_map_path")
        if labels is None or path is None:
            return
        if labels.ndim != 2:
            raise DataError(f"the label map '{path}' {self._layout(path, labels)}")
        if image is not None and labels.shape != image.shape[:2]:
            raise DataError(
                f"the label map '{path}' is {labels.shape[1]} x {labels.shape[0]} and its image '{info['img_path']}' "
                f"{image.shape[1]} x {image.shape[0]}: expected equal sizes{_turn(info, labels, image)}"
            )
        self._check_labels(info, path, labels)

    def _layout(self, path: str, labels: np.ndarray) -> str:
        if labels.ndim != 3:
            return f"is read as an array of {labels.shape}: expected rows and columns, more than one of each"
        text = f"has {labels.shape[-1]} channels: expected one, of class indices"
        with np.errstate(all="ignore"):
            grey = labels.shape[-1] > 2 and (labels[..., :3] == labels[..., :1]).all()
        if grey:
            return f"{text}; they are equal, so that one of them can be saved alone"
        return f"{text}; its colours, or its palette's as imdecode_backend='cv2' reads them, are no indices: " + (
            "save indices, or read palettes by LoadAnnotations(imdecode_backend='pillow')"
        )

    def _check_labels(self, info: Mapping[str, Any], path: str, labels: np.ndarray) -> None:
        found = self.counts.add(labels)
        cut = self.reader.cut_labels(path)
        unknown = {label for label in found if not self.rules.allow(label)}
        if not unknown and not cut:
            return
        wrong = np.isin(labels, list(unknown))
        said = sorted({*self.reader.file_labels(path, labels, wrong), *cut}) if unknown else sorted(cut)
        first = 1 if info.get("reduce_zero_label") else 0
        classes = info["label_map"].keys() if info.get("label_map") else range(self.rules.num_classes)
        # of labels of the file: 255 stays what it is, 0 becomes it
        known = sorted({0} & set(range(first)) | self.rules.ignored) if 255 in self.rules.ignored else []
        known = known or sorted(self.rules.ignored)
        ignored = " and ".join(map(str, known)) if known else "nothing"
        last = min(max(classes) + first, 255 if cut else max(classes) + first)
        raise DataError(
            f"the label map '{path}' holds the labels {said[:8]}: expected {min(classes) + first} to {last} for "
            f"{len(classes)} classes ({ignored} {'are' if len(known) > 1 else 'is'} ignored); correct the file, the "
            f"classes, or reduce_zero_label{self.rules.cure}{_cut(cut)}{_masks(said, found)}"
        )


def _cut(cut: Mapping[Any, int]) -> str:
    return "".join(
        f"; LoadAnnotations cuts labels to 8 bits, so that {label} would become {new}, without a word"
        for label, new in list(cut.items())[:1]
    )


def _masks(said: Sequence[Any], found: Sequence[int]) -> str:
    """What to do with masks, of which 255 is the object and not the ignored part."""
    if list(said) != [255] or not set(found) <= {0, 255}:
        return ""
    return "; if this is a mask, of 0 and 255, convert it to 0 and 1"


def _turn(info: Mapping[str, Any], labels: np.ndarray, image: np.ndarray) -> str:
    if labels.shape[::-1] != image.shape[:2] or not turned_by_exif(info["img_path"]):
        return ""
    return (
        "; the image's EXIF data say that it is to be turned: train with "
        "LoadImageFromFile(color_type='color_ignore_orientation'), or turn the label map"
    )
