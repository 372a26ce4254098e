"""A panoptic annotation file in COCO's format: read, and found to be one that mmdet reads rightly."""

from collections.abc import Mapping, Sequence
from os.path import basename
from typing import Any

from ...text import first_few, quoted
from ..reading import DataError
from ..text_files import decoded_json

_ID = (int, str)
#: keys of a segment that mmdet's data set and metric read, and the types of their values
_SEGMENT = {"id": (int,), "category_id": (int,), "bbox": (list,), "area": (int, float), "iscrowd": (int, bool)}


class PanopticFile:
    """What a panoptic annotation file holds.

    Args:
        path: The file.
        backend_args: Where it is kept, as in mmengine's data sets.

    Attributes:
        images: Image id to its entry.
        categories: The list 'categories', in the file's order.
        segments: Image id to its segments.

    Raises:
        DataError: The file cannot be read, lacks something, or contradicts itself.
    """

    def __init__(self, path: str, backend_args: Any = None) -> None:
        self.path = path
        content = decoded_json(path, backend_args)
        lists = ("images", "annotations", "categories")
        if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in lists):
            raise DataError(
                f"'{path}' is no panoptic annotation file: expected an object with the lists {', '.join(lists)}"
            )
        self.images = {image["id"]: image for image in self._checked(content["images"], "images", dict(id=_ID))}
        self._checked(content["images"], "images", dict(file_name=(str,), width=(int, float), height=(int, float)))
        self.categories = self._checked(
            content["categories"], "categories", dict(id=(int,), name=(str,), isthing=(int, bool))
        )
        if not self.images or not self.categories:
            raise DataError(f"'{path}' lists no {'images' if not self.images else 'categories'}: expected some")
        for kind, key in (("images", "id"), ("categories", "id"), ("categories", "name")):
            self._check_once(content[kind], kind, key)
        self.segments: dict[Any, list[dict[str, Any]]] = {}
        known = {category["id"] for category in self.categories}
        annotations = self._checked(content["annotations"], "annotations", dict(image_id=_ID, segments_info=(list,)))
        for i, annotation in enumerate(annotations):
            self._read_annotation(f"annotations[{i}]", annotation, known)
        missing = [image["file_name"] for key, image in self.images.items() if key not in self.segments]
        if missing:
            raise DataError(
                f"'{path}' has no annotation of {len(missing):,} of {len(self.images):,} images, "
                f"{first_few(missing, 3)}: expected one for each; remove these images, or annotate them"
            )

    def _read_annotation(self, where: str, annotation: Mapping[str, Any], known: set[int]) -> None:
        key = annotation["image_id"]
        if key not in self.images:
            raise DataError(f"'{self.path}': {where} is of the image {key!r}, which 'images' does not list")
        if key in self.segments:
            raise DataError(f"'{self.path}': {where} is the second one of the image {key!r}: expected one for each")
        image = self.images[key]["file_name"]
        read = image.replace(".jpg", ".png")  # as mmdet does
        named = annotation.get("file_name", read)
        if basename(named) != basename(read):
            raise DataError(
                f"'{self.path}': {where} names the map '{named}', and of the image '{image}' mmdet reads '{read}': "
                "images must be '*.jpg' or '*.png', and maps have their names with '.png'"
            )
        segments = self._checked(annotation["segments_info"], f"{where}.segments_info", _SEGMENT)
        self._check_once(segments, f"{where}.segments_info", "id")
        for segment in segments:
            if segment["category_id"] not in known:
                raise DataError(
                    f"'{self.path}': {where} has the segment {segment['id']} of the category {segment['category_id']}, "
                    "which 'categories' does not list"
                )
            if not 0 < segment["id"] < 256**3:
                raise DataError(f"'{self.path}': {where} has the segment id {segment['id']}: expected 1 to 256**3 - 1")
        self.segments[key] = segments

    def _checked(self, entries: Any, kind: str, types: Mapping[str, tuple[type, ...]]) -> list[dict[str, Any]]:
        """Entries of a list, which have values of these types.

        Raises:
            DataError: One has not.
        """
        for i, entry in enumerate(entries):
            for key, allowed in types.items():
                if not isinstance(entry, dict) or type(entry.get(key)) not in allowed:
                    found = "is no object" if not isinstance(entry, dict) else f"has the {key} {entry.get(key)!r}"
                    expected = " or ".join(one.__name__ for one in allowed)
                    raise DataError(f"'{self.path}': {kind}[{i}] {found}: expected '{key}', of type {expected}")
        return list(entries)

    def _check_once(self, entries: Sequence[Mapping[str, Any]], kind: str, key: str) -> None:
        seen = set()
        for entry in entries:
            if entry[key] in seen:
                raise DataError(f"'{self.path}': two {kind} have the {key} {entry[key]!r}: expected each once")
            seen.add(entry[key])

    def check_classes(self, metainfo: Mapping[str, Any]) -> None:
        """Check that things and stuff are the file's, in its order: mmdet counts categories as the file lists them.

        Args:
            metainfo: A data set's: ``classes``, ``thing_classes`` and ``stuff_classes``.

        Raises:
            DataError: They are not.
        """
        things, stuff = list(metainfo.get("thing_classes", ())), list(metainfo.get("stuff_classes", ()))
        if list(metainfo["classes"]) != [*things, *stuff]:
            raise DataError(
                f"the classes {quoted(metainfo['classes'])} are not the things {quoted(things)} with the stuff "
                f"{quoted(stuff)} behind: set --cfg-options thing_classes=... stuff_classes=..."
            )
        kind = {category["name"]: bool(category["isthing"]) for category in self.categories}
        names = list(kind)
        if missing := [name for name in metainfo["classes"] if name not in names]:
            raise DataError(
                f"'{self.path}' has no category for {first_few(missing, 5)}; its things are "
                f"{quoted(name for name in names if kind[name])}, its stuff {quoted(n for n in names if not kind[n])}"
            )
        for name in metainfo["classes"]:
            if kind[name] != (name in things):
                said, other = ("stuff", "a thing") if name in things else ("a thing", "stuff")
                raise DataError(f"'{self.path}' says that {name!r} is {said}, and the config that it is {other}")
        others = {c["id"]: c["name"] for c in self.categories if c["name"] not in set(metainfo["classes"])}
        for segments in self.segments.values():
            for segment in segments:
                if segment["category_id"] in others:
                    raise DataError(
                        f"'{self.path}' has segments of {others[segment['category_id']]!r}, which is none of the "
                        "classes, and mmdet's data set fails on those: add the class, or remove the segments"
                    )
        chosen = [name for name in names if name in set(metainfo["classes"])]
        if chosen != list(metainfo["classes"]):
            first = next(i for i, name in enumerate(metainfo["classes"]) if name != chosen[i])
            raise DataError(
                f"'{self.path}' lists the categories in another order than the classes: label {first} would be "
                f"{chosen[first]!r} and be called {metainfo['classes'][first]!r}. Expected things first, then stuff, "
                "in the order of the config"
            )

    def check_scored(self) -> None:
        """Check that there is something to score of things, and of stuff: PQ is a mean over the classes of each.

        Raises:
            DataError: There is not.
        """
        kind = {category["id"]: bool(category["isthing"]) for category in self.categories}
        found = {kind[s["category_id"]] for segments in self.segments.values() for s in segments if not s["iscrowd"]}
        for thing, name, cure in ((True, "thing", "score label maps"), (False, "stuff", "score instances")):
            if thing not in found:
                raise DataError(
                    f"'{self.path}' has no segment of {name} to score, and PQ is a mean over things and one over "
                    f"stuff: {cure} instead, or annotate some"
                )

    def summary(self) -> str:
        """How much there is of what."""
        segments = [s for of_image in self.segments.values() for s in of_image]
        things = {category["id"] for category in self.categories if category["isthing"]}
        crowds = sum(bool(s["iscrowd"]) for s in segments)
        count = sum(s["category_id"] in things for s in segments) - crowds
        return (
            f"{len(self.images):,} images, {count:,} segments of {len(things)} kinds of things, {crowds:,} crowds, "
            f"{len(segments) - count - crowds:,} segments of {len(self.categories) - len(things)} kinds of stuff"
        )
