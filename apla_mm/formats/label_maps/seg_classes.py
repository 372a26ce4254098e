"""The names of segmentation classes, and which labels they have."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ...data.reading import DataError
from ...text import first_few
from ..class_files import ClassFile
from ..coco import coco_files
from ..files import Files
from .label_values import LabelValues

_IGNORED = 255
_GREYS = range(100, _IGNORED)  # labels that are greys of a mask rather than indices of classes
_CLOSE = 16  # by which noise changes 0 and 255 at most
_MOST_UNNAMED = 64  # labels in one label map, of classes that nothing names
_CITYSCAPES = (7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33)  # ids of the 19 classes


@dataclass
class SegClasses:
    """Classes of label maps.

    Attributes:
        names: All that label maps hold.
        labels: The label of each in the files.
        chosen: Those to be learned.
        reduce_zero_label: The label 0 is ignored, and the others count from 1.
        ignored: Further labels that are ignored, but for 255.
        notes: Where names come from.
    """

    names: list[str]
    labels: list[int]
    chosen: list[str] = field(default_factory=list)
    reduce_zero_label: bool = False
    ignored: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def name_classes(
    files: Files,
    values: LabelValues,
    maps: Sequence[str],
    classes: Sequence[str] | None,
    voc: bool,
    table: ClassFile | None = None,
) -> SegClasses:
    """Name the classes of label maps.

    Args:
        files: The files, among which names may be.
        values: What the label maps hold.
        maps: Their paths.
        classes: Names, where the files have none; or those to be learned of the files' names.
        voc: They lie as Pascal VOC's do.
        table: The file that names the classes.

    Raises:
        DataError: Names and labels do not fit.
    """
    labels = values.labels
    binary = labels == [0, _IGNORED]
    if not binary:
        labels = [label for label in labels if label != _IGNORED]
    if not labels:
        raise DataError("all pixels of all label maps are 255, which is ignored: there is nothing to learn")
    _check_not_blended(values, files)
    found = _known(maps, labels, voc and table is None)
    if found is None or not set(classes or ()) <= set(found.names):
        source, names = _names_of_files(files, table)
        if names and classes is not None and not set(classes) <= set(names):
            raise DataError(
                f"classes={list(classes)} are none of {source}, {first_few(names, 20)}: expected some of these"
            )
        if not names and classes is not None:
            source, names, classes = "the names that were given", list(classes), None
        doubt = "" if binary else _doubt(values)
        if not names and doubt:
            raise DataError(_question(doubt, values, files))
        found = _fit(names, source, labels, values, files, bool(doubt)) if names else _unnamed(labels, values, files)
    if binary:
        found.notes.append("Label maps hold 0 and 255 alone: 255 is taken for the second class, and not for ignored.")
    elif _IGNORED in found.labels:
        found.notes.append("There is a name for the label 255, too: it is taken for a class, and not for ignored.")
    elif _IGNORED in values.labels:
        found.notes.append("The label 255 is ignored.")
    found.chosen = found.names if classes is None else _chosen(found, classes)
    return found


def _check_not_blended(values: LabelValues, files: Files) -> None:
    """Check that masks of 0 and 255 have no other greys, as resizing with blending and saving with loss make them.

    Raises:
        DataError: They have.
    """
    between = [label for label in values.labels if label not in (0, _IGNORED)]
    if not between or not {0, _IGNORED} <= set(values.labels):
        return
    count = sum(values.pixels[label] for label in between)
    share = count / sum(values.pixels.values())
    many = len(between) > 3 and max(between) > 128
    close = max(between) >= _IGNORED - _CLOSE and all(min(label, _IGNORED - label) <= _CLOSE for label in between)
    if share < 0.1 and (many or (close and count < values.pixels[_IGNORED])):
        path = files.full(values.example[between[-1]])
        raise DataError(
            f"label maps hold 0, 255 and, in {share:.1%} of the pixels, {len(between)} labels between, such as "
            f"{between[-1]} in '{path}': they look like masks of which the edges are blended. Make them again without "
            "resizing, smoothing or saving with loss, or set all that is over 127 to 255 and the rest to 0"
        )


def _doubt(values: LabelValues) -> str:
    """Why 255 may be a class, and not what is ignored; empty if it is the latter."""
    if _IGNORED not in values.labels:
        return ""
    share = values.pixels[_IGNORED] / sum(values.pixels.values())
    if share > 0.5:
        return f"{share:.0%} of the pixels have the label 255"
    grey = next((label for label in values.labels if label in _GREYS), None)
    if grey is not None and 0 in values.labels:
        return f"beside 0 and 255 there is the label {grey}, as in masks of greys"
    return ""


def _question(doubt: str, values: LabelValues, files: Files) -> str:
    count = len(values.labels)
    return (
        f"label maps hold the labels {first_few(values.labels, 24)}, such as '{files.full(values.example[_IGNORED])}', "
        f"and nothing names the classes. By custom 255 is ignored, but {doubt}: give classes=, or a file classes.txt, "
        f"with {count} names if 255 is a class, or with {count - 1} if it is ignored"
    )


def _known(maps: Sequence[str], labels: list[int], voc: bool) -> SegClasses | None:
    """The classes of well-known data sets, by their names of files."""
    from mmseg.datasets import CityscapesDataset, PascalVOCDataset

    stems = [PurePosixPath(path).stem for path in maps]
    cityscapes = list(CityscapesDataset.METAINFO["classes"])
    if voc and max(labels) <= 20:
        names = list(PascalVOCDataset.METAINFO["classes"])
        return SegClasses(names, list(range(21)), notes=["The classes are Pascal VOC's 21, by the names of folders."])
    if all("_gt" in stem and stem.endswith("_labelTrainIds") for stem in stems) and max(labels) < 19:
        return SegClasses(cityscapes, list(range(19)), notes=["The classes are Cityscapes' 19, by the files' names."])
    if (
        all("_gt" in stem and stem.endswith("_labelIds") for stem in stems)
        and max(labels) <= 33
        and set(labels) & set(_CITYSCAPES)
    ):
        others = sorted(set(range(34)) - set(_CITYSCAPES))
        note = "The classes are Cityscapes' 19, by the files' names; its other labels are ignored."
        return SegClasses(cityscapes, list(_CITYSCAPES), ignored=others, notes=[note])
    return None


def _names_of_files(files: Files, table: ClassFile | None) -> tuple[str, list[str]]:
    """Where class names are, and the names; none if there are none."""
    if table is not None:
        return f"'{table.path}'", list(table.names)
    for path in files.with_suffix(".txt"):
        if PurePosixPath(path).name == "objectInfo150.txt":
            return f"'{path}'", _object_info(files, path)
    for coco in coco_files(files):
        categories = sorted(coco.file.categories, key=lambda category: category["id"])
        if [category["id"] for category in categories] == list(range(1, len(categories) + 1)):
            return f"'{coco.path}'", ["background", *(category["name"] for category in categories)]
    return "", []


def _object_info(files: Files, path: str) -> list[str]:
    """The 150 names of ADE20K's file: of several words for one class the first, where no other class has it."""
    full = [line.split("\t")[-1].strip() for line in (files.root / path).read_text().splitlines()[1:] if line.strip()]
    short = [name.split(",")[0].strip() for name in full]
    return [one if short.count(one) == 1 else whole for one, whole in zip(short, full, strict=True)]


def _fit(
    names: list[str], source: str, labels: list[int], values: LabelValues, files: Files, doubted: bool
) -> SegClasses:
    """Give labels to names; to as many names as there are labels 255, too, where it is doubted or nothing else fits."""
    count, last = len(names), labels[-1]
    said = (
        f"The {count} classes are named by {source}" if source.startswith("'") else f"The {count} classes have {source}"
    )
    if source.endswith("objectInfo150.txt'") and last <= count:
        note = f"{said}; their labels are 1 to {count}, and the label 0 is ignored."
        return SegClasses(names, list(range(1, count + 1)), reduce_zero_label=True, notes=[note])
    if labels == [0, _IGNORED] and count <= 2:
        names = names if count == 2 else ["background", *names]
        return SegClasses(names, labels, notes=[f"{said}; the label 0 is '{names[0]}', and 255 is '{names[1]}'."])
    all_named = SegClasses(
        names, values.labels, notes=[f"{said}; their labels are {', '.join(map(str, values.labels))}."]
    )
    if doubted and count == len(values.labels):
        return all_named
    if last < count:
        return SegClasses(names, list(range(count)), notes=[f"{said}; their labels are 0 to {count - 1}."])
    if last == count and "background" not in map(str.lower, names):
        note = f"{said}; there are labels 0 to {count}: 0 is taken for a class more, 'background'."
        if 0 in labels:
            return SegClasses(["background", *names], list(range(count + 1)), notes=[note])
        return SegClasses(names, list(range(1, count + 1)), notes=[f"{said}; their labels are 1 to {count}."])
    if len(labels) == count:
        note = f"{said}; they are taken for the labels {', '.join(map(str, labels))} in this order."
        return SegClasses(names, labels, notes=[note])
    if len(values.labels) == count:
        return all_named
    raise DataError(
        f"{count} classes are named by {source or 'classes'}, {first_few(names, 8)}, and label maps hold the "
        f"{len(labels)} labels {first_few(labels, 24)}; {last} is in '{files.full(values.example[last])}'. Expected "
        f"the labels 0 to {count - 1}, or as many as there are names: correct the names, or the label maps"
    )


def _unnamed(labels: list[int], values: LabelValues, files: Files) -> SegClasses:
    most, path = values.most
    if most > _MOST_UNNAMED:
        raise DataError(
            f"the label map '{files.full(path)}' holds {most} labels, and nothing names so many classes: it may be a "
            "grey image, or have been resized with its labels blended. If they are classes, name them in a file "
            "classes.txt, one a line, or by classes="
        )
    note = (
        f"Nothing names the classes: they are called by the labels that are found, {first_few(labels, 24)}; "
        "classes= names them."
    )
    return SegClasses([f"class {label}" for label in labels], labels, notes=[note])


def _chosen(found: SegClasses, classes: Sequence[str]) -> list[str]:
    unknown = [name for name in classes if name not in found.names]
    if unknown or len(set(classes)) != len(classes):
        raise DataError(
            f"classes={list(classes)} are none of the data's, or not each once: expected some of "
            f"{first_few(found.names, 30)}"
        )
    others = [name for name in found.names if name not in classes]
    if others:
        found.notes.append(f"Classes that are not asked for are ignored: {first_few(others, 8)}.")
    return list(classes)
