"""Images with objects, and annotation files in COCO's format that are made of them."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.reading import DataError
from ..text import first_few
from .files import Files
from .found import FoundData
from .made import Made
from .splits import train_and_val


@dataclass
class LabelledImage:
    """An image and its objects.

    Attributes:
        path: Its file.
        width: In pixels.
        height: In pixels.
        split: 'train', 'val', 'test' or None.
        objects: As annotations of COCO's format, with 'name', the class's, in place of ids.
    """

    path: str
    width: int
    height: int
    split: str | None = None
    objects: list[dict[str, Any]] = field(default_factory=list)


class Source(ABC):
    """Objects that were found in a folder, in one format."""

    format: str
    path: str

    @abstractmethod
    def counts(self) -> dict[str, int]:
        """How many objects each image has that has any."""

    @abstractmethod
    def found(self, made: Made, classes: Sequence[str] | None, held_out: float, seed: int) -> FoundData:
        """Data sets of mmdet.

        Args:
            made: The folder for annotation files that are made.
            classes: Those to be learned; None for all.
            held_out: The share of images that are validated on where there is no split.
            seed: Which of them.
        """


@dataclass
class ObjectSource(Source):
    """Objects in a format that mmdet does not read as it is.

    Attributes:
        format: The format's name.
        path: What an error names: the file or folder it was known by.
        files: The files.
        names: The classes, in the order of their labels.
        images: The images.
        notes: What was found.
        listed: Whether the images' splits are those of lists, and not of folders.
    """

    format: str
    path: str
    files: Files
    names: list[str]
    images: list[LabelledImage]
    notes: list[str] = field(default_factory=list)
    listed: bool = False

    def counts(self) -> dict[str, int]:
        return {image.path: len(image.objects) for image in self.images if image.objects}

    def found(self, made: Made, classes: Sequence[str] | None, held_out: float, seed: int) -> FoundData:
        chosen = chosen_classes(self.names, classes, self.notes)
        splits: dict[str | None, list[LabelledImage]] = {}
        for image in sorted(self.images, key=lambda one: one.path):
            splits.setdefault(image.split, []).append(image)
        names = {split: [image.path for image in images] for split, images in splits.items()}
        used, notes = train_and_val(splits, names, held_out, seed, None if self.listed else self.files)
        written = {split: made.write_json(f"{split}.json", self._coco(images)) for split, images in used.items()}
        objects = [one for images in used.values() for image in images for one in image.objects]
        masked = sum("segmentation" in one for one in objects)
        masks = 0 < masked == len(objects)
        told = [*self.notes, *notes, mask_note(masked, len(objects))]
        told.append(f"The annotations are converted to COCO's format: {' and '.join(map(repr, written.values()))}.")
        sets = {split: dataset_config(self.files, path, "") for split, path in written.items()}
        return FoundData(self.format, "det", tuple(chosen), tuple(told), sets, masks)

    def _coco(self, images: Sequence[LabelledImage]) -> dict[str, list[dict[str, Any]]]:
        category = {name: i for i, name in enumerate(self.names, 1)}
        entries, annotations = [], list[dict[str, Any]]()
        for i, image in enumerate(images, 1):
            entries.append(dict(id=i, file_name=image.path, width=image.width, height=image.height))
            for one in image.objects:
                rest = {key: value for key, value in one.items() if key != "name"}
                ids = dict(id=len(annotations) + 1, image_id=i, category_id=category[one["name"]])
                annotations.append({**ids, "iscrowd": 0, **rest})
        categories = [dict(id=i, name=name) for name, i in category.items()]
        return dict(images=entries, annotations=annotations, categories=categories)


def chosen_classes(names: Sequence[str], classes: Sequence[str] | None, notes: list[str]) -> list[str]:
    """The classes to be learned, in the order of the data's.

    Raises:
        DataError: The data do not have one.
    """
    if classes is None:
        return list(names)
    unknown = [name for name in classes if name not in names]
    if unknown:
        raise DataError(f"the data have no class {first_few(map(repr, unknown), 5)}: expected some of {list(names)}")
    chosen = [name for name in names if name in set(classes)]
    if chosen != list(classes):
        notes.append(f"The classes are taken in the data's order, {first_few(chosen, 8)}.")
    if len(chosen) < len(names):
        left_out = [name for name in names if name not in set(classes)]
        notes.append(f"Objects of other classes are left out: {first_few(left_out, 8)}.")
    return chosen


def mask_note(masked: int, count: int) -> str:
    """What is said of masks."""
    if not masked:
        return f"The objects have boxes and no masks ({count:,})."
    if masked == count:
        return f"All objects have masks ({count:,})."
    return f"Objects with masks: {masked:,} of {count:,}; the others have boxes alone, so that masks are not scored."


def dataset_config(files: Files, ann_file: str, images: str) -> Mapping[str, Any]:
    """The config of mmdet's data set of an annotation file, whose images are below a folder."""
    return dict(type="CocoDataset", data_root=str(files.root), ann_file=ann_file, data_prefix=dict(img=images))
