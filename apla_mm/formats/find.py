"""Finds which format a folder's data are in."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from ..data.reading import DataError
from .coco import find_coco
from .files import Files
from .found import FoundData
from .label_maps.seg_pairs import find_pairs
from .label_maps.segmentation import find_segmentation
from .made import Made
from .objects import Source
from .voc import find_voc
from .voc_lists import find_voc_pairs
from .yolo import find_yolo

_LOOKED_FOR = {
    "seg": (
        "ADE20K's folders (images/training, annotations/training), Pascal VOC's (JPEGImages, SegmentationClass, "
        "ImageSets/Segmentation/*.txt), folders of splits, or images and label maps of which the names have a part in "
        "common, such as img_01.jpg and img_01_mask.png"
    ),
    "det": (
        "COCO's JSON with images, annotations and categories, Pascal VOC's XML files, or YOLO's label files "
        "(data.yaml, images/*.jpg, labels/*.txt)"
    ),
}


def find_data(
    folder: str | Path,
    task: str,
    into: str | Path | Made,
    *,
    classes: Sequence[str] | None = None,
    held_out: float = 0.2,
    seed: int = 0,
) -> FoundData:
    """Find which format a folder's data are in, and make data sets of them.

    Args:
        folder: The data. Nothing in it is changed.
        task: 'seg' for images and label maps, 'det' for images and objects.
        into: A folder for the files that are written: lists of samples, converted annotations. One inside ``folder``
            is not taken for data. :class:`~apla_mm.formats.made.Made` writes them beside it, until they are kept.
        classes: Names, where the files have none; or those to be learned, a part of the files' names.
        held_out: The share of images that are validated on where there is no split.
        seed: Which images those are.

    Returns:
        Configs of data sets, and notes of all that was found, guessed and left out.

    Raises:
        ValueError: An argument is none of the above.
        DataError: Nothing is found, formats contradict each other, or a file cannot be read.
    """
    if task not in _LOOKED_FOR:
        raise ValueError(f"task={task!r}: expected 'seg' or 'det'")
    if not 0 < held_out < 1:
        raise ValueError(f"held_out={held_out}: expected a share of the images between 0 and 1, such as 0.2")
    if classes is not None and (isinstance(classes, str) or not classes or len(set(classes)) < len(classes)):
        raise ValueError(f"classes={classes!r}: expected names that differ, such as ['cat', 'dog']")
    made = into if isinstance(into, Made) else Made(into)
    files = Files(folder, without=made.into)
    found = None
    if task == "seg":
        found = find_segmentation(files, made, classes, held_out, seed)
    else:
        source, notes = _one_of(files, _sources(files, classes))
        if source is not None:
            found = source.found(made, classes, held_out, seed)
            found = FoundData(
                found.format, found.task, found.classes, (*notes, *found.notes), found.splits, found.masks
            )
    if found is None:
        raise DataError(
            f"in '{files.root}' there are no data for task='{task}'{_other_task(files, task)}. Looked for: "
            f"{_LOOKED_FOR[task]}. There are: {files.summary()}"
        )
    return found


def _other_task(files: Files, task: str) -> str:
    """What is said where there are data for the other task."""
    with suppress(DataError):
        if task == "seg" and (sources := _sources(files, None)):
            return f", but for task='det', in {sources[0].format}"
        if task == "det" and (find_voc_pairs(files) or find_pairs(files)):
            return ", but for task='seg', images and label maps"
    return ""


def _sources(files: Files, classes: Sequence[str] | None) -> list[Source]:
    found = (find_coco(files), find_yolo(files, classes), find_voc(files, classes))
    return [source for source in found if source is not None]


def _one_of(files: Files, sources: Sequence[Source]) -> tuple[Source | None, list[str]]:
    """The source that is taken, and what is said of others, which hold the same.

    Raises:
        DataError: They do not.
    """
    if not sources:
        return None, []
    first, *others = sources
    notes = []
    for other in others:
        if other.counts() != first.counts():
            said = "; ".join(
                f"{source.format} ('{source.path}'): {sum(source.counts().values()):,} objects in "
                f"{len(source.counts()):,} images"
                for source in sources
            )
            raise DataError(
                f"in '{files.root}' there are objects in several formats, which differ: {said}. Expected one: name a "
                f"folder that holds one, or move the others away. There are: {files.summary()}"
            )
        notes.append(f"{first.format} is read; {other.format} is there, too, with as many objects in each image.")
    return first, notes
