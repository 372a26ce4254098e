"""Files that name classes, and the colours that they have in label maps."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from ..data.reading import DataError
from .files import Files

#: of names, one a line; Roboflow's of labels; CamVid's and CVAT's of colours
_OF_NAMES = ("classes.txt", "labels.txt", "class_names.txt")
_OF_LABELS = ("_classes.csv",)
_OF_COLOURS = ("class_dict.csv", "labelmap.txt")

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class ClassFile:
    """A file that names classes.

    Attributes:
        path: Its path below the data's folder.
        names: In the order of their labels.
        colours: RGB of each, 0 to 255; None where the file has none.
    """

    path: str
    names: tuple[str, ...]
    colours: tuple[Colour, ...] | None = None


def class_file(files: Files) -> ClassFile | None:
    """The file that names the classes; None if there is none.

    Raises:
        DataError: It cannot be read, or several say different things.
    """
    known = (*_OF_NAMES, *_OF_LABELS, *_OF_COLOURS)
    found = [_read(files, path) for path in files.paths if PurePosixPath(path).name.lower() in known]
    if len({one.names for one in found}) > 1 or len({one.colours for one in found} - {None}) > 1:
        paths = " and ".join(repr(one.path) for one in found)
        raise DataError(f"in '{files.root}' {paths} name different classes: leave one of them")
    return next((one for one in found if one.colours), found[0] if found else None)


def _read(files: Files, path: str) -> ClassFile:
    name = PurePosixPath(path).name.lower()
    if name in _OF_NAMES:
        return ClassFile(path, tuple(names_in(files, path)))
    read = {"_classes.csv": _labelled, "class_dict.csv": _coloured, "labelmap.txt": _coloured_by_cvat}[name]
    found = read(files, path)
    _check_once(files, path, found.names, "class")
    _check_once(files, path, found.colours or (), "colour")
    if not found.names:
        raise DataError(f"'{files.full(path)}' names no class")
    return found


def names_in(files: Files, path: str) -> list[str]:
    """The class names in a file, one a line; what numbers them is left out.

    Raises:
        DataError: It is no text in UTF-8, or has a name twice.
    """
    names = [line.strip() for line in _lines(files, path) if line.strip()]
    numbers = [name.replace(":", " ").replace(",", " ").split(maxsplit=1) for name in names]
    if names and all(len(pair) == 2 and pair[0] == str(i) for i, pair in enumerate(numbers)):
        names = [pair[1].strip() for pair in numbers]
    if names[:1] == ["__ignore__"]:  # LabelMe's name of what has no class
        names = names[1:]
    _check_once(files, path, names, "class")
    return names


def _labelled(files: Files, path: str) -> ClassFile:
    """Roboflow's ``Pixel Value, Class``."""
    rows = _rows(files, path, ("pixel value", "class"))
    names = tuple(row["class"] for row in rows)
    if [row["pixel value"] for row in rows] != [str(i) for i in range(len(rows))]:
        raise DataError(f"'{files.full(path)}' has other labels than 0, 1, 2, ... in this order: number them so")
    return ClassFile(path, names)


def _coloured(files: Files, path: str) -> ClassFile:
    """CamVid's ``name,r,g,b``."""
    rows = _rows(files, path, ("name", "r", "g", "b"))
    colours = tuple(_colour(files, path, [row[key] for key in "rgb"]) for row in rows)
    return ClassFile(path, tuple(row["name"] for row in rows), colours)


def _coloured_by_cvat(files: Files, path: str) -> ClassFile:
    """CVAT's ``name:r,g,b:parts:actions``; names one a line, as others call by this file name, are taken as such."""
    lines = [line for line in _lines(files, path) if line.strip() and not line.lstrip().startswith("#")]
    if not any(":" in line and "," in line for line in lines):
        return ClassFile(path, tuple(names_in(files, path)))
    fields = [line.split(":") for line in lines]
    colours = tuple(_colour(files, path, (one[1] if len(one) > 1 else "").split(",")) for one in fields)
    return ClassFile(path, tuple(one[0].strip() for one in fields), colours)


def _rows(files: Files, path: str, columns: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV file by the names of its columns, in lower case."""
    rows = list(csv.reader(_lines(files, path)))
    head = [cell.strip().lower() for cell in rows[0]] if rows else []
    if not set(columns) <= set(head):
        raise DataError(f"'{files.full(path)}' has the columns {head}: expected {', '.join(columns)}")
    for number, row in enumerate(rows[1:], start=2):
        if row and len(row) != len(head):
            raise DataError(f"'{files.full(path)}', line {number}, has {len(row)} cells: expected {len(head)}")
    return [dict(zip(head, map(str.strip, row), strict=True)) for row in rows[1:] if row]


def _colour(files: Files, path: str, cells: Sequence[str]) -> Colour:
    if len(cells) == 3 and all(cell.strip().isdecimal() and int(cell) < 256 for cell in cells):
        return int(cells[0]), int(cells[1]), int(cells[2])
    raise DataError(f"'{files.full(path)}' has the colour '{','.join(cells)}': expected red, green and blue, 0 to 255")


def _lines(files: Files, path: str) -> list[str]:
    try:
        return (files.root / path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{files.full(path)}' is no UTF-8: {error.reason} in place {error.start:,}") from error


def _check_once(files: Files, path: str, items: Sequence[str | Colour], what: str) -> None:
    twice = next((item for i, item in enumerate(items) if item in items[:i]), None)
    if twice is not None:
        raise DataError(f"'{files.full(path)}' has the {what} '{twice}' twice: expected each once")
