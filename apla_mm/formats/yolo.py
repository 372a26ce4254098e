"""Objects in YOLO's format: a text file for each image, a line for each object."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import yaml

from ..data.reading import DataError
from ..text import first_few, quoted
from .class_files import names_in
from .files import Files, one_of, split_of
from .named_files import NamedFiles
from .objects import LabelledImage, ObjectSource
from .split_lists import named_by, read_list

_TOLERANCE = 0.01  # of an image's side, by which a coordinate may be outside of it
_NAMES_FILES = ("classes.txt", "obj.names", "labels.txt")
_LISTS = ("train.txt", "val.txt", "valid.txt", "test.txt")


@dataclass
class _Description:
    """What data.yaml says: class names, the images of splits, and whether lines go on with keypoints."""

    names: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=dict)
    keypoints: bool = False
    notes: list[str] = field(default_factory=list)


def find_yolo(files: Files, classes: Sequence[str] | None) -> ObjectSource | None:
    """The objects in YOLO's format; None if there are none.

    Args:
        files: The files.
        classes: Names, where the files have none.

    Raises:
        DataError: A file cannot be read, or contradicts another.
    """
    described = _description(files)
    label_of = _label_files(files)
    if not label_of or (described is None and not _looks_right(files, label_of)):
        return None
    about = described or _Description()
    folders = {str(PurePosixPath(image).parent) for image in label_of}
    taken = [path for path in files.images if path in about.images or str(PurePosixPath(path).parent) in folders]
    if about.images:
        taken = [path for path in taken if path in about.images]
    notes = [*about.notes]
    names = about.names or _listed_names(files, notes)
    if not names and classes is not None:
        names = list(classes)
    images, highest = [], -1
    for path in taken:
        split = about.images.get(path) or split_of(path)[0]
        image = LabelledImage(path, *files.image_size(path), split)
        for number, parts in _lines(files, label_of.get(path)):
            where = f"'{files.full(label_of[path])}', line {number}"
            label, one = _object(where, parts, image, about.keypoints)
            if names and label >= len(names):
                raise DataError(f"{where}: the class {label} has no name: expected 0 to {len(names) - 1}, {names[:8]}")
            highest = max(highest, label)
            image.objects.append({"name": label, **one})
        images.append(image)
    if not names:
        names = [f"class {i}" for i in range(highest + 1)]
        notes.append(f"Nothing names the {len(names)} classes: they are called by their numbers; classes= names them.")
    for image in images:
        for thing in image.objects:
            thing["name"] = names[thing["name"]]
    notes += _unpaired(files, label_of, taken)
    if about.keypoints:
        notes.append("Keypoints are left out: boxes are learned alone.")
    path = next(iter(label_of.values()))
    return ObjectSource("YOLO's format", path, files, names, images, notes, listed=bool(about.images))


def _description(files: Files) -> _Description | None:
    """What the file says that names the classes, such as data.yaml."""
    found: list[tuple[str, dict[str, Any]]] = []
    for path in files.with_suffix(".yaml", ".yml"):
        text = (files.root / path).read_text(encoding="utf-8-sig", errors="replace")
        if "names" not in text:
            continue
        try:
            content = yaml.safe_load(text)
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            line = f", line {mark.line + 1}" if mark else ""
            raise DataError(f"'{files.full(path)}'{line} cannot be read: {getattr(error, 'problem', error)}") from error
        if isinstance(content, dict) and "names" in content and {"train", "val", "nc", "path"} & content.keys():
            found.append((path, content))
    if len(found) > 1:
        raise DataError(f"{quoted([path for path, _ in found])} each describe YOLO's data: leave one of them")
    if not found:
        return None
    (path, content), *_ = found
    about = _Description(_names_of(files.full(path), content), keypoints="kpt_shape" in content)
    about.notes.append(f"The classes are named by '{path}'.")
    for split in ("test", "val", "train"):
        _add_split(files, path, content, split, about)
    return about


def _names_of(path: str, content: dict[str, Any]) -> list[str]:
    names = content["names"]
    if isinstance(names, dict):
        if sorted(names) != list(range(len(names))):
            raise DataError(f"'{path}': names has the numbers {sorted(names, key=str)}: expected 0 to {len(names) - 1}")
        names = [names[i] for i in range(len(names))]
    if not isinstance(names, list) or not names or len(set(map(str, names))) != len(names):
        raise DataError(f"'{path}': names is {names!r}: expected names that differ, in a list or by number")
    if content.get("nc", len(names)) != len(names):
        raise DataError(f"'{path}' has nc: {content['nc']} and {len(names)} names: expected as many")
    return [str(name) for name in names]


def _add_split(files: Files, path: str, content: dict[str, Any], split: str, about: _Description) -> None:
    """Find the images that data.yaml names for a split, in folders or lists."""
    values = content.get(split) or []
    for value in values if isinstance(values, list) else [values]:
        place = _place(files, path, content, str(value))
        if place is None:
            about.notes.append(
                f"'{path}' names '{value}' for {split}, which does not exist: folders' names say the splits."
            )
        elif place.endswith(".txt"):
            about.images.update(dict.fromkeys(_listed_images(files, place, split), split))
        else:
            inside = [one for one in files.images if place in ("", ".") or one.startswith(f"{place}/")]
            about.images.update(dict.fromkeys(inside, split))


def _place(files: Files, path: str, content: dict[str, Any], value: str) -> str | None:
    """A file or folder of data.yaml, below the root; None if it is not there."""
    here = (files.root / path).parent
    plain = value.removeprefix("./")
    while plain.startswith("../"):
        plain = plain[3:]  # exports for notebooks write a folder more
    for start in (here / str(content.get("path") or ""), here, files.root):
        for one in (value, plain):
            there = Path(start, one)
            if there.exists() and there.resolve().is_relative_to(files.root.resolve()):
                return there.resolve().relative_to(files.root.resolve()).as_posix()
    return None


def _listed_images(files: Files, path: str, split: str) -> list[str]:
    named = NamedFiles(files.images)
    return [named_by(files, path, number, line, named, split) for number, line in read_list(files, path)]


def _label_files(files: Files) -> dict[str, str]:
    """The label file of each image that has one: beside it, or in labels/ where it is in images/, or of its name."""
    texts = {path for path in files.with_suffix(".txt") if PurePosixPath(path).name not in (*_NAMES_FILES, *_LISTS)}
    in_labels: dict[str, list[str]] = {}
    for path in texts:
        if "labels" in path.split("/")[:-1]:
            in_labels.setdefault(PurePosixPath(path).stem, []).append(path)
    found = {}
    for image in files.images:
        text = PurePosixPath(image).with_suffix(".txt").as_posix()
        parts = text.split("/")
        places = [i for i, part in enumerate(parts[:-1]) if part == "images"]
        swapped = "/".join([*parts[: places[-1]], "labels", *parts[places[-1] + 1 :]]) if places else text
        one = next((path for path in (swapped, text) if path in texts), None)
        one = one or one_of(sorted(in_labels.get(PurePosixPath(image).stem, [])), image)
        if one is not None:
            found[image] = one
    return found


def _looks_right(files: Files, label_of: dict[str, str]) -> bool:
    """Whether files are labels by their folder, or by their first line of numbers."""
    for path in label_of.values():
        if "labels" in path.split("/")[:-1]:
            return True
        words = (files.root / path).read_text(errors="replace").split()
        if words:
            return words[0].isdigit() and all(word.replace(".", "", 1).isdigit() for word in words[:5])
    return False


def _listed_names(files: Files, notes: list[str]) -> list[str]:
    for path in files.paths:
        if PurePosixPath(path).name in _NAMES_FILES:
            notes.append(f"The classes are named by '{path}'.")
            return names_in(files, path)
    return []


def _lines(files: Files, path: str | None) -> list[tuple[int, list[str]]]:
    """The lines of a label file that are not empty, with their numbers."""
    if path is None:
        return []
    try:
        lines = (files.root / path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{files.full(path)}' is no text: {error.reason} in place {error.start:,}") from error
    return [(i, line.split()) for i, line in enumerate(lines, 1) if line.strip()]


def _object(where: str, parts: list[str], image: LabelledImage, keypoints: bool) -> tuple[int, dict[str, Any]]:
    """The class and the box, or polygon, of a line."""
    try:
        label, values = float(parts[0]), np.array(parts[1:], dtype=np.float64)
    except ValueError:
        raise DataError(f"{where}, '{first_few(parts, 8, ' ')}', is no YOLO label: expected numbers") from None
    if label != int(label) or label < 0:
        raise DataError(f"{where}: the class is {parts[0]}: expected an integer from 0 on")
    values = values[:4] if keypoints else values
    if len(values) != 4 and (len(values) < 6 or len(values) % 2):
        raise DataError(
            f"{where} has {len(values)} numbers after the class: expected 4, a box's centre, width and height, or the "
            "x and y of 3 points at least"
        )
    if not np.isfinite(values).all() or values.min() < -_TOLERANCE or values.max() > 1 + _TOLERANCE:
        wrong = next(v for v in values.tolist() if not -_TOLERANCE <= v <= 1 + _TOLERANCE)
        raise DataError(f"{where} has the coordinate {wrong:g}: expected 0 to 1, shares of the image's width or height")
    size = np.array([image.width, image.height], dtype=np.float64)
    if len(values) == 4:
        if values[2:].min() <= 0:
            raise DataError(f"{where} has a box of width {values[2]:g} and height {values[3]:g}: expected more than 0")
        sides = values[2:] * size
        corner = values[:2] * size - sides / 2
        return int(label), dict(bbox=[*corner.tolist(), *sides.tolist()], area=float(sides.prod()))
    points = values.reshape(-1, 2) * size
    start, end = points.min(axis=0), points.max(axis=0)
    x, y = points.T
    area = float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
    box = [*start.tolist(), *(end - start).tolist()]
    return int(label), dict(bbox=box, area=area, segmentation=[points.ravel().tolist()])


def _unpaired(files: Files, label_of: dict[str, str], taken: Sequence[str]) -> list[str]:
    notes = []
    bare = [path for path in taken if path not in label_of]
    if bare:
        notes.append(
            f"Images without a label file are taken for images without objects ({len(bare):,}): {quoted(bare, 4)}."
        )
    left_out = sorted({*files.images} - {*taken})
    if left_out:
        notes.append(
            f"Images in no split or folder with labels are left out ({len(left_out):,}): {quoted(left_out, 4)}."
        )
    used = set(label_of.values())
    alone = [path for path in files.with_suffix(".txt") if "labels" in path.split("/")[:-1] and path not in used]
    alone = [path for path in alone if PurePosixPath(path).name not in _NAMES_FILES]
    if alone:
        notes.append(f"Label files without an image are left out ({len(alone):,}): {quoted(alone, 4)}.")
    return notes
