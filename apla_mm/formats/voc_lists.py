"""Pascal VOC's lists of splits, and the images and label maps that they name."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from ..data.reading import DataError
from ..text import quoted
from .files import Files
from .label_maps.seg_pairs import Pairs
from .named_files import NamedFiles
from .split_lists import list_split, named_by, read_list, say, without_trainval


def find_voc_pairs(files: Files) -> Pairs | None:
    """The pairs of Pascal VOC's folders, in the splits of its lists; None if there are no such folders.

    Raises:
        DataError: A list names what is not there, or what is there twice.
    """
    maps = [path for path in files.images if "SegmentationClass" in path.split("/")[:-1]]
    images = [path for path in files.images if "JPEGImages" in path.split("/")[:-1]]
    lists = voc_lists(files, "Segmentation")
    if not maps or not images or not lists:
        return None
    named_images, named_maps = NamedFiles(images), NamedFiles(maps)
    map_of = {_place(path, "SegmentationClass"): path for path in maps}
    pairs: dict[str | None, list[tuple[str, str]]] = {}
    for split, path in lists.items():
        pairs[split] = []
        for number, line in read_list(files, path):
            image = named_by(files, path, number, line, named_images, split, "image in JPEGImages")
            label_map = map_of.get(_place(image, "JPEGImages")) or named_by(
                files, path, number, line, named_maps, split, "label map in SegmentationClass"
            )
            pairs[split].append((image, label_map))
    listed = {pair[1] for samples in pairs.values() for pair in samples}
    alone = sorted({*maps} - listed)
    notes = [say(lists.values())]
    if alone:
        notes.append(f"Label maps in none of these lists are left out ({len(alone):,}): {quoted(alone, 4)}.")
    return Pairs(pairs, notes)


def _place(path: str, folder: str) -> tuple[str, str]:
    """What comes before one of Pascal VOC's folders in a path, and after it, without the suffix."""
    before, _, after = f"/{path}".partition(f"/{folder}/")
    return before, str(PurePosixPath(after).with_suffix(""))


def voc_lists(files: Files, kind: str) -> Mapping[str, str]:
    """The lists of Pascal VOC's splits: train, or else trainval, val and test.

    Args:
        files: The files.
        kind: 'Segmentation' or 'Main'.

    Raises:
        DataError: There are several of one split.
    """
    lists: dict[str, str] = {}
    for path in files.with_suffix(".txt"):
        split = list_split(path)
        if split is None or path.split("/")[-3:-1] != ["ImageSets", kind]:
            continue
        if split in lists:
            raise DataError(f"there are two lists, '{lists[split]}' and '{path}': name the folder of one of them")
        lists[split] = path
    return without_trainval(lists)
