"""Pascal VOC's lists of splits, and the images and label maps that they name."""

from collections.abc import Mapping
from pathlib import PurePosixPath

from ..data.reading import DataError
from ..text import quoted
from .files import Files
from .label_maps.seg_pairs import Pairs


def find_voc_pairs(files: Files) -> Pairs | None:
    """The pairs of Pascal VOC's folders, in the splits of its lists; None if there are no such folders.

    Raises:
        DataError: A list names what is not there.
    """
    maps = {PurePosixPath(p).stem: p for p in files.images if "SegmentationClass" in p.split("/")[:-1]}
    images = {PurePosixPath(p).stem: p for p in files.images if "JPEGImages" in p.split("/")[:-1]}
    lists = voc_lists(files, "Segmentation")
    if not maps or not images or not lists:
        return None
    pairs: dict[str | None, list[tuple[str, str]]] = {}
    for split, path in lists.items():
        pairs[split] = []
        for line, name in read_list(files, path):
            if name not in images or name not in maps:
                what = "image in JPEGImages" if name not in images else "label map in SegmentationClass"
                raise DataError(
                    f"'{files.full(path)}', line {line}: '{name}' has no {what}: add it, or remove the line"
                )
            pairs[split].append((images[name], maps[name]))
    listed = {pair[1] for samples in pairs.values() for pair in samples}
    alone = sorted({*maps.values()} - listed)
    notes = [f"The splits are those of {quoted(lists.values())}."]
    if alone:
        notes.append(f"Label maps in none of these lists are left out ({len(alone):,}): {quoted(alone, 4)}.")
    return Pairs(pairs, notes)


def voc_lists(files: Files, kind: str) -> Mapping[str | None, str]:
    """The lists of Pascal VOC's splits: train, val and test, or trainval alone.

    Args:
        files: The files.
        kind: 'Segmentation' or 'Main'.

    Raises:
        DataError: There are several of one split.
    """
    lists: dict[str | None, str] = {}
    for path in files.with_suffix(".txt"):
        *folders, name = path.split("/")
        split = {"train.txt": "train", "val.txt": "val", "test.txt": "test", "trainval.txt": "trainval"}.get(name)
        if split is None or folders[-2:] != ["ImageSets", kind]:
            continue
        if split in lists:
            raise DataError(f"there are two lists, '{lists[split]}' and '{path}': name the folder of one of them")
        lists[split] = path
    both = lists.pop("trainval", None)
    if both is not None and "train" not in lists:
        # with a test split, VOC trains on trainval; without any, it is split
        lists["train" if {"val", "test"} & lists.keys() else None] = both
    return lists


def read_list(files: Files, path: str) -> list[tuple[int, str]]:
    """The names in a list of a split, with the numbers of their lines.

    Raises:
        DataError: It is no text in UTF-8, or names nothing.
    """
    try:
        lines = (files.root / path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{files.full(path)}' is no UTF-8: {error.reason} in place {error.start:,}") from error
    # Main's lists may have 1, 0 or -1 after each name
    named = [(i, line.split()[0]) for i, line in enumerate(lines, 1) if line.strip()]
    if not named:
        raise DataError(f"'{files.full(path)}' lists no images: expected one name in each line")
    return named
