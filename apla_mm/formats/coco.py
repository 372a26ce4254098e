"""Annotation files in COCO's format, found by what they hold, and their images, found wherever they lie."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from ..data.coco.file import CocoFile
from ..data.reading import DataError
from ..data.text_files import decoded_json
from ..text import quoted
from .files import Files, of_no_other_split, one_of, split_of, split_of_name, words_of
from .found import FoundData
from .made import Made
from .objects import Source, chosen_classes, dataset_config, mask_note
from .splits import train_and_val

_KEYS = (b'"images"', b'"annotations"', b'"categories"')


@dataclass(frozen=True)
class CocoPart:
    """An annotation file.

    Attributes:
        path: Where it is.
        file: What it holds.
        split: 'train', 'val', 'test' or None, by its name or folder.
    """

    path: str
    file: CocoFile
    split: str | None


def coco_files(files: Files) -> list[CocoPart]:
    """The annotation files in COCO's format, those of panoptic segmentation left out.

    Raises:
        DataError: One cannot be read.
    """
    found = []
    for path in files.with_suffix(".json"):
        text = (files.root / path).read_bytes()
        if not all(key in text for key in _KEYS):
            continue
        content = decoded_json(files.full(path))
        if not isinstance(content, dict) or not all(isinstance(content.get(key.decode()[1:-1]), list) for key in _KEYS):
            continue
        if any("segments_info" in one for one in content["annotations"][:1]):
            continue  # of panoptic segmentation
        split = split_of_name(PurePosixPath(path).stem) or split_of(path)[0]
        found.append(CocoPart(path, CocoFile(files.full(path)), split))
    return found


class CocoSource(Source):
    """Objects in COCO's format.

    Args:
        files: The files.
        parts: The annotation files.

    Raises:
        DataError: There are several of one split, they have other categories, or their images are not there.
    """

    format = "COCO's format"

    def __init__(self, files: Files, parts: Sequence[CocoPart]) -> None:
        self.files, self.notes = files, list[str]()
        self.parts = self._one_a_split(parts)
        self.path = self.parts[0].path
        self.names = self.parts[0].file.names
        for part in self.parts[1:]:
            if part.file.names != self.names:
                raise DataError(
                    f"'{self.path}' has the categories {quoted(self.names, 20)} and '{part.path}' "
                    f"{quoted(part.file.names, 20)}: expected the same, in one order"
                )
        self._images = {part.path: self._find_images(part) for part in self.parts}

    def counts(self) -> dict[str, int]:
        counts: dict[str, int] = {}
        for part in self.parts:
            for i in part.file.image.tolist():
                path = self._images[part.path][i]
                counts[path] = counts.get(path, 0) + 1
        return counts

    def found(self, made: Made, classes: Sequence[str] | None, held_out: float, seed: int) -> FoundData:
        notes = [*self.notes]
        chosen = chosen_classes(self.names, classes, notes)
        splits: dict[str | None, list[tuple[CocoPart, int]]] = {}
        for part in self.parts:
            paths = self._images[part.path]
            for i, path in enumerate(paths):
                splits.setdefault(part.split or split_of(path)[0], []).append((part, i))
        names = {split: [self._images[part.path][i] for part, i in ones] for split, ones in splits.items()}
        looked_in = None if any(part.split for part in self.parts) else self.files
        used, more = train_and_val(splits, names, held_out, seed, looked_in)
        sets = {split: self._dataset(made, f"{split}.json", ones, notes) for split, ones in used.items()}
        objects = self._objects(used.values(), set(chosen))
        masked = sum(bool(one.get("segmentation")) for one in objects)
        notes += [*more, mask_note(masked, len(objects))]
        return FoundData(self.format, "det", tuple(chosen), tuple(notes), sets, 0 < masked == len(objects))

    def _one_a_split(self, parts: Sequence[CocoPart]) -> list[CocoPart]:
        kept = []
        for split in dict.fromkeys(part.split for part in parts):
            same = [part for part in parts if part.split == split]
            preferred = [part for part in same if "instances" in words_of(PurePosixPath(part.path).stem)]
            if len(same) > 1 and len(preferred) == 1:
                others = [part.path for part in same if part is not preferred[0]]
                self.notes.append(f"'{preferred[0].path}' is taken; of the same split are left out {quoted(others)}.")
                same = preferred
            if len(same) > 1:
                what = f"of the split {split}" if split else "of no split"
                raise DataError(
                    f"there are {len(same)} annotation files {what} in COCO's format, "
                    f"{quoted([part.path for part in same])}: expected one; leave it in the folder, or name them after "
                    "their splits, such as train.json and val.json"
                )
            kept += same
        named = [part for part in kept if part.split]
        if named and len(named) < len(kept):
            others = [part.path for part in kept if not part.split]
            self.notes.append(
                f"Annotation files of no split are left out, as there are some of splits: {quoted(others)}."
            )
            kept = named
        self.notes.insert(0, f"The annotation files are {quoted(part.path for part in kept)}.")
        return kept

    def _find_images(self, part: CocoPart) -> list[str]:
        """The paths of a file's images, in its order."""
        names = [image["file_name"].replace("\\", "/").removeprefix("./") for image in part.file.images]
        there = set(self.files.images)
        near = f"{part.split}/{part.path}" if part.split and split_of(part.path)[0] is None else part.path
        folders = dict.fromkeys(
            path.removesuffix(names[0])
            for path in self.files.images_named(PurePosixPath(names[0]).name)
            if path == names[0] or path.endswith(f"/{names[0]}")
        )
        fitting = [folder for folder in folders if all(folder + name in there for name in names)]
        firsts = of_no_other_split([f"{folder}{names[0]}" for folder in fitting], near, names[0])
        if firsts:
            first = one_of(firsts, near, names[0])
            if first is None:
                raise DataError(
                    f"the images of '{part.path}' are in several folders, "
                    f"{quoted(path.removesuffix(names[0]) for path in firsts)}, with equal names: expected one; move "
                    "the others away"
                )
            return [first.removesuffix(names[0]) + name for name in names]
        found = [one_of(self.files.images_named(PurePosixPath(name).name), near, name) for name in names]
        missing = [name for name, path in zip(names, found, strict=True) if path is None]
        if missing:
            raise DataError(
                f"{len(missing):,} of {len(names):,} images of '{self.files.full(part.path)}' are not below "
                f"'{self.files.root}', lie in another split's folder, or several have their name: "
                f"{quoted(missing, 4)}. There are "
                f"{self.files.summary()}; add the images, or remove them from the annotation file"
            )
        return [path for path in found if path is not None]

    def _dataset(self, made: Made, name: str, ones: Sequence[tuple[CocoPart, int]], notes: list[str]) -> Any:
        """The config of a split's data set: of the annotation file as it is, if it fits."""
        (part, _), *_ = ones
        images = self._images[part.path]
        folder = images[0].removesuffix(part.file.images[0]["file_name"])
        if len(ones) == len(images) and all(one is part for one, _ in ones):
            names = [image["file_name"] for image in part.file.images]
            if [folder + name for name in names] == images:
                return dataset_config(self.files, self.files.full(part.path), folder)
        chosen = {i for _, i in ones}
        file = part.file
        content = dict(
            images=[{**file.images[i], "file_name": images[i]} for i in sorted(chosen)],
            annotations=[one for one, i in zip(file.annotations, file.image.tolist(), strict=True) if i in chosen],
            categories=file.categories,
        )
        written = made.write_json(name, content)
        notes.append(f"'{written}' lists images of '{part.path}' ({len(ones):,}), with their paths as found.")
        return dataset_config(self.files, written, "")

    def _objects(self, splits: Iterable[Sequence[tuple[CocoPart, int]]], classes: set[str]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for ones in splits:
            part, chosen = ones[0][0], {i for _, i in ones}
            places = zip(part.file.annotations, part.file.image.tolist(), part.file.category.tolist(), strict=True)
            found += [one for one, image, kind in places if image in chosen and self.names[kind] in classes]
        return found


def find_coco(files: Files) -> CocoSource | None:
    """The objects in COCO's format; None if there are none."""
    parts = coco_files(files)
    return CocoSource(files, parts) if parts else None
