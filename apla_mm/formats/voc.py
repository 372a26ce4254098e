"""Objects in Pascal VOC's format: one XML file for each image."""

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from ..data.reading import DataError
from ..text import quoted
from .files import Files, of_no_other_split, one_of, split_of
from .named_files import NamedFiles
from .objects import LabelledImage, ObjectSource
from .split_lists import named_by, read_list, say
from .voc_lists import voc_lists


class _Xml:
    """An annotation file, of which errors name the line.

    Args:
        path: The file.

    Raises:
        DataError: It is no XML.
    """

    def __init__(self, path: str) -> None:
        self.path, self._lines = path, dict[Element, int]()
        builder, parser = TreeBuilder(), expat.ParserCreate()

        def start(tag: str, attributes: dict[str, str]) -> None:
            self._lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

        parser.StartElementHandler = start
        parser.EndElementHandler = builder.end
        parser.CharacterDataHandler = builder.data
        try:
            with open(path, "rb") as file:
                parser.ParseFile(file)
            self.root = builder.close()
        except (expat.ExpatError, OSError) as error:
            raise DataError(f"the annotation file '{path}' cannot be read: {error}; expected XML") from error

    def error(self, element: Element, problem: str) -> DataError:
        """The error that names an element's line."""
        return DataError(f"'{self.path}', line {self._lines[element]}: <{element.tag}> {problem}")

    def text(self, element: Element, key: str) -> str:
        """The text of a part of an element.

        Raises:
            DataError: There is none.
        """
        part = element.find(key)
        if part is None or not (part.text or "").strip():
            raise self.error(element, f"has no <{key}>: expected one with a value")
        return str(part.text).strip()

    def number(self, element: Element, key: str) -> float:
        """The number in a part of an element.

        Raises:
            DataError: There is none.
        """
        text = self.text(element, key)
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not abs(value) < float("inf"):
            part = element.find(key)
            raise self.error(element if part is None else part, f"holds '{text}': expected a number")
        return value

    def flag(self, element: Element, key: str) -> int:
        """1 where a part of an element is 1; 0 where it is 0, or missing."""
        part = element.find(key)
        return int(part is not None and (part.text or "").strip() not in ("", "0"))


def find_voc(files: Files, classes: Sequence[str] | None) -> ObjectSource | None:
    """The objects in Pascal VOC's format; None if there are none.

    Args:
        files: The files.
        classes: Their order, if they name all.

    Raises:
        DataError: A file cannot be read, or has no image.
    """
    paths = [path for path in files.with_suffix(".xml") if b"<annotation" in (files.root / path).read_bytes()]
    if not paths:
        return None
    annotations = {path: _Xml(files.full(path)) for path in paths}
    lists = voc_lists(files, "Main")
    splits, notes = _splits(files, paths, lists)
    corners = [
        (xml.number(box, key), key)
        for xml in annotations.values()
        for box in xml.root.iter("bndbox")
        for key in ("xmin", "ymin", "xmax", "ymax")
    ]
    from_zero = any(value != int(value) or (value < 1 and key in ("xmin", "ymin")) for value, key in corners)
    image_of = _images(files, {path: xml for path, xml in annotations.items() if path in splits}, notes)
    images = [_image(files, image, annotations[path], splits[path], from_zero) for path, image in image_of.items()]
    if corners:
        notes.append(
            "Boxes' corners are taken for coordinates from 0 on, as some are 0 or fractions."
            if from_zero
            else "Boxes' corners are taken for pixels from 1 on, both inside the box, as Pascal VOC has them."
        )
    difficult = sum(bool(one.get("difficult")) for image in images for one in image.objects)
    if difficult:
        notes.append(f"Objects marked difficult are neither learned nor scored, as crowds are not ({difficult:,}).")
    bare = sorted({*files.images} - {image.path for image in images})
    bare = [path for path in bare if "Segmentation" not in path]
    if bare:
        notes.append(f"Images without an XML file, or in no list, are left out ({len(bare):,}): {quoted(bare, 4)}.")
    names = _names({one["name"] for image in images for one in image.objects}, classes, notes)
    return ObjectSource("Pascal VOC's format", paths[0], files, names, images, notes, listed=bool(lists))


def _splits(files: Files, paths: Sequence[str], lists: Mapping[str, str]) -> tuple[dict[str, str | None], list[str]]:
    """The split of each XML file that is used: by VOC's lists, or the folder."""
    if not lists:
        return {path: split_of(path)[0] for path in paths}, []
    named = NamedFiles(paths)
    splits: dict[str, str | None] = {}
    for split, path in lists.items():
        for number, line in read_list(files, path):
            splits[named_by(files, path, number, line, named, split, "XML file")] = split
    return splits, [say(lists.values())]


def _images(files: Files, annotations: Mapping[str, _Xml], notes: list[str]) -> dict[str, str]:
    """The image of each XML file: the one of its own name, or else the one that it says.

    Raises:
        DataError: There is none, or several, or one has two XML files.
    """
    images: dict[str, str] = {}
    of_image: dict[str, str] = {}
    others = []
    for path, xml in annotations.items():
        stem = PurePosixPath(path).stem
        said = PurePosixPath((xml.root.findtext("filename") or "").strip().replace("\\", "/"))
        own, by_name = (
            of_no_other_split((one for one in files.images_named(name) if "Segmentation" not in one), path)
            for name in (stem, said.name)
        )
        candidates = [one for one in own if one in by_name] or own or by_name
        image = one_of(candidates, path)
        if image is None:
            found = f"several images, {quoted(candidates, 4)}," if candidates else "no image"
            name = said.name if by_name or not said.name else f"{said.name}' or '{stem}"
            raise DataError(f"'{xml.path}' has {found} of the name '{name}' below '{files.root}': expected one")
        if image in of_image:
            raise DataError(
                f"'{files.full(of_image[image])}' and '{xml.path}' are both of the image '{image}': expected one XML "
                "file for each image; move the other away, or correct its name or <filename>"
            )
        if own and said.name and said.stem != stem:
            others.append(path)
        images[path] = image
        of_image[image] = path
    if others:
        notes.append(
            f"XML files say another <filename> than their own, of which an image is there and is taken "
            f"({len(others):,}): {quoted(others, 4)}."
        )
    return images


def _image(files: Files, image: str, xml: _Xml, split: str | None, from_zero: bool) -> LabelledImage:
    width, height = files.image_size(image)
    size = xml.root.find("size")
    if size is not None:
        said = int(xml.number(size, "width")), int(xml.number(size, "height"))
        if all(said) and said != (width, height):
            problem = f"says {said[0]} x {said[1]}, and the image '{files.full(image)}' is {width} x {height}"
            raise xml.error(size, f"{problem}: expected equal sizes")
    objects = [_object(xml, one, from_zero) for one in xml.root.findall("object")]
    return LabelledImage(image, width, height, split, objects)


def _object(xml: _Xml, element: Element, from_zero: bool) -> dict[str, Any]:
    box = element.find("bndbox")
    if box is None:
        raise xml.error(element, "has no <bndbox>: expected one")
    left, top, right, bottom = (xml.number(box, key) for key in ("xmin", "ymin", "xmax", "ymax"))
    if not from_zero:
        left, top = left - 1, top - 1
    if right < left or bottom < top:
        raise xml.error(box, "ends before it starts: expected xmax and ymax not under xmin and ymin")
    found: dict[str, Any] = dict(name=xml.text(element, "name"), bbox=[left, top, right - left, bottom - top])
    found["area"] = found["bbox"][2] * found["bbox"][3]
    if xml.flag(element, "difficult"):
        found.update(difficult=1, iscrowd=1)
    return found


def _names(found: set[str], classes: Sequence[str] | None, notes: list[str]) -> list[str]:
    from mmdet.datasets import VOCDataset

    voc = list(VOCDataset.METAINFO["classes"])
    if classes is not None and found <= set(classes):
        return list(classes)
    if found <= set(voc) and len(found) > len(voc) / 2:
        notes.append("The classes are Pascal VOC's 20, as all objects are of them.")
        return voc
    notes.append(f"The {len(found)} classes are those of the objects, in the alphabet's order.")
    return sorted(found)
