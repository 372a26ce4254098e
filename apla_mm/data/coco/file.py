"""An annotation file in COCO's format: read, and found to be one."""

import json
from itertools import chain
from typing import Any

import numpy as np

from ..reading import DataError
from ..text_files import decoded_json

_ID = (int, str, float)
_NUMBER = (int, float)


class CocoFile:
    """What an annotation file in COCO's format holds, in columns.

    Args:
        path: The file.
        annotated: Without it the file may lack annotations, as those of test sets do.
        scored: Predictions are compared with the file, which asks for more.
        backend_args: Where the file is kept, as in mmengine's data sets.

    Attributes:
        images: The list 'images'.
        annotations: The list 'annotations'.
        categories: The list 'categories', in the file's order.
        sizes: (number of images, 2): width and height.
        image: (number of annotations,): index of each annotation's image.
        category: (number of annotations,): index of each annotation's category.
        boxes: (number of annotations, 4): left, top, width and height.

    Raises:
        DataError: The file cannot be read, lacks something, or contradicts itself.
    """

    def __init__(self, path: str, annotated: bool = True, scored: bool = False, backend_args: Any = None) -> None:
        self.path, self.scored = path, scored
        content = self._read(annotated, backend_args)
        self.images, self.annotations, self.categories = (
            content[kind] for kind in ("images", "annotations", "categories")
        )
        if not self.images:
            raise DataError(f"'{path}' lists no images: expected some in 'images'")
        self._image_of = self._index("images", "id", self._column("images", "id", _ID, "an int"))
        self._column("images", "file_name", (str,), "the image's path below data_prefix.img")
        sizes = [self._column("images", key, _NUMBER, "a number of pixels") for key in ("width", "height")]
        self.sizes = np.array(sizes, dtype=np.float64).T
        for i in np.flatnonzero((self.sizes < 1).any(axis=1))[:1]:
            shown = {key: self.images[i][key] for key in ("id", "file_name", "width", "height")}
            raise DataError(f"'{path}': the image {_short(shown)} has no pixels: expected its width and height")
        category_of = self._index("categories", "id", self._column("categories", "id", _ID, "an int"))
        self._index("categories", "name", self._column("categories", "name", (str,), "a name"))
        self._index("annotations", "id", self._column("annotations", "id", _ID, "an int"))
        self.image = self._refer("image_id", "images", self._image_of)
        self.category = self._refer("category_id", "categories", category_of)
        self.boxes = self._boxes()
        self._column("annotations", "area", _NUMBER, "a number; without masks, the box's width x height")
        if scored:
            self._column("annotations", "iscrowd", (int, bool), "0 or 1, which the evaluation reads")

    @property
    def names(self) -> list[str]:
        """Names of the categories, in the file's order."""
        return [category["name"] for category in self.categories]

    def error(self, wrong: np.ndarray, problem: str, cure: str) -> DataError:
        """The error that names the first of some annotations.

        Args:
            wrong: Indices of the annotations that share the problem.
            problem: What is wrong with the first.
            cure: What was expected, and what to do.
        """
        annotation = self.annotations[wrong[0]]
        place = self._image_of.get(annotation["image_id"])
        image = "" if place is None else f" in image {annotation['image_id']!r}, {self._name(place)},"
        more = "" if len(wrong) == 1 else f" (so do {len(wrong) - 1:,} more annotations)"
        return DataError(f"'{self.path}': annotation {annotation['id']!r}{image} {problem}{more}: {cure}")

    def _name(self, image: int) -> str:
        return f"'{self.images[image]['file_name']}'"

    def _read(self, annotated: bool, backend_args: Any) -> dict[str, Any]:
        content = decoded_json(self.path, backend_args)
        keys = ("images", "annotations", "categories")
        expected = f"expected COCO's format, an object with the lists {', '.join(keys)}"
        if not isinstance(content, dict):
            raise DataError(f"'{self.path}' holds a {type(content).__name__}: {expected}")
        if not annotated:
            content.setdefault("annotations", [])
        for key in keys:
            if not isinstance(content.get(key), list):
                raise DataError(f"'{self.path}' has no list '{key}' but {', '.join(content) or 'nothing'}: {expected}")
        return content

    def _column(self, kind: str, key: str, types: tuple[type, ...], expected: str) -> list[Any]:
        """One key's value in all entries of a list."""
        entries = getattr(self, kind)
        try:
            values = [entry[key] for entry in entries]
            if set(map(type, values)) <= set(types):
                return values
        except (KeyError, TypeError, IndexError):
            pass
        for i, entry in enumerate(entries):
            if not isinstance(entry, dict):
                raise DataError(f"'{self.path}': {kind}[{i}] is {_short(entry)}: expected an object")
            if type(entry.get(key)) not in types:
                said = f"the {key} {_short(entry[key])}" if key in entry else f"no '{key}'"
                raise DataError(f"'{self.path}': {kind}[{i}], {_short(entry)}, has {said}: expected {expected}")
        raise AssertionError(f"{kind} differ when they are read again")

    def _index(self, kind: str, key: str, values: list[Any]) -> dict[Any, int]:
        """The place of each value in its list."""
        index = {value: i for i, value in enumerate(values)}
        if len(index) < len(values):
            i = next(i for i, value in enumerate(values) if index[value] != i)
            entries = getattr(self, kind)
            two = f"{_short(entries[i])} and {_short(entries[index[values[i]]])}"
            raise DataError(f"'{self.path}': two {kind} have the {key} {values[i]!r}, {two}: expected each {key} once")
        return index

    def _refer(self, key: str, kind: str, index: dict[Any, int]) -> np.ndarray:
        """The places of what the annotations refer to."""
        values = self._column("annotations", key, _ID, f"the id of one of the {kind}")
        places = np.array([index.get(value, -1) for value in values], dtype=np.int64)
        missing = np.flatnonzero(places < 0)
        if len(missing):
            known = ", ".join(map(repr, list(index)[:8])) + (", ..." if len(index) > 8 else "")
            problem = f"has the {key} {values[missing[0]]!r}, which none of the {kind} has"
            raise self.error(missing, problem, f"expected one of {known or 'none'}; remove it, or add to {kind}")
        return places

    def _boxes(self) -> np.ndarray:
        boxes = self._column("annotations", "bbox", (list,), "[left, top, width, height]")
        if {*map(len, boxes)} <= {4} and {*map(type, chain.from_iterable(boxes))} <= set(_NUMBER):
            array = np.fromiter(chain.from_iterable(boxes), np.float64, 4 * len(boxes)).reshape(-1, 4)
            fine = np.isfinite(array).all(axis=1) & (array[:, 2:] >= 0).all(axis=1)
        else:
            fine = np.array([len(box) == 4 and {*map(type, box)} <= set(_NUMBER) for box in boxes])
        wrong = np.flatnonzero(~fine)
        if len(wrong):
            cure = "expected four finite numbers [left, top, width, height], width and height not negative"
            raise self.error(wrong, f"has the box {_short(boxes[wrong[0]])}", cure)
        return array


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
