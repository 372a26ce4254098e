"""Lists of splits: text files of which each line names an image."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from ..data.reading import DataError
from ..text import quoted
from .files import Files, split_of_name, words_of
from .named_files import NamedFiles

_FILLERS = {"list", "set", "split", "image", "images", "img", "file", "files", "name", "names", "id", "ids", "data"}
_SPLIT_KEYS = {"train": "train", "valid": "val", "val": "val", "test": "test"}  # of Darknet's obj.data
_LOOKED_AT = 50  # lines of a text that may be a list


@dataclass(frozen=True)
class SplitLists:
    """Lists of splits, and the images that they name.

    Attributes:
        lists: For each split the path of its list.
        splits: For each image that is named its split.
    """

    lists: Mapping[str, str] = field(default_factory=dict)
    splits: Mapping[str, str] = field(default_factory=dict)

    def split_of(self, image: str, of_folder: str | None) -> str | None:
        """An image's split: its list's, or else its folder's if that split has no list."""
        return self.splits.get(image, None if of_folder in self.lists else of_folder)


def list_split(path: str) -> str | None:
    """The split that a list is of by its name: 'train', 'val', 'test' or 'trainval'; None if of none, or of several.

    A list of 'person_train.txt' is of a class.
    """
    words = [word for word in words_of(PurePosixPath(path).stem) if word not in _FILLERS]
    if len(words) != 1:
        return None
    return "trainval" if words[0] == "trainval" else split_of_name(words[0])


def without_trainval(lists: Mapping[str, str]) -> dict[str, str]:
    """Lists by split, of which 'trainval' is that of 'train' if there is no other."""
    found = {split: path for split, path in lists.items() if split != "trainval"}
    return {**found, "train": lists["trainval"]} if "trainval" in lists and "train" not in lists else found


def read_list(files: Files, path: str) -> list[tuple[int, str]]:
    """The lines of a list that are not empty, with their numbers.

    Raises:
        DataError: It is no text in UTF-8, or names nothing.
    """
    try:
        lines = (files.root / path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"'{files.full(path)}' is no UTF-8: {error.reason} in place {error.start:,}") from error
    named = [(i, line.strip()) for i, line in enumerate(lines, 1) if line.strip()]
    if not named:
        raise DataError(f"'{files.full(path)}' lists no images: expected one name in each line")
    return named


def named_by(
    files: Files, path: str, number: int, line: str, named: NamedFiles, split: str | None, what: str = "image"
) -> str:
    """The file that a line of a list names.

    Raises:
        DataError: There is none, or several.
    """
    found = named.of(line, path, _one_split(path, split))
    if len(found) == 1:
        return found[0]
    where = f"'{files.full(path)}', line {number}: '{line}'"
    if found:
        raise DataError(f"{where} is the name of several, {quoted(found, 4)}: write the path below '{files.root}'")
    outside = " but in another split's folder" if named.of(line, path) else ""
    raise DataError(f"{where} has no {what}{outside}: add it, or remove the line")


def _one_split(path: str, split: str | None) -> str | None:
    """The split in whose folders the files of a list may be; None where they may be in those of all."""
    return None if list_split(path) == "trainval" else split


def find_split_lists(files: Files, images: Sequence[str]) -> SplitLists:
    """The lists of splits of images: those that Darknet's obj.data names, or texts named after splits.

    A text is a list if most of its lines name images.

    Args:
        files: The files.
        images: Those that have labels.

    Raises:
        DataError: There are several lists of one split, or one names what is not there.
    """
    described = _described(files)
    paths = described or [(split, path) for path in _texts(files) if (split := list_split(path))]
    if not paths:
        return SplitLists()
    labelled, others = NamedFiles(images), NamedFiles({*files.images} - {*images})
    lists: dict[str, str] = {}
    for split, path in paths:
        if not described and not _is_list(files, path, labelled, others):
            continue
        if split in lists:
            raise DataError(
                f"there are several lists of the split {split}, '{lists[split]}' and '{path}': leave one of them in "
                "the folder, or name a folder that has one"
            )
        lists[split] = path
    lists = without_trainval(lists)
    splits: dict[str, str] = {}
    for split in sorted(lists, key=["val", "test", "train"].index):  # a list to test on may be the one of val
        path = lists[split]
        for number, line in read_list(files, path):
            where = _one_split(path, split)
            if not labelled.of(line, path, where) and others.of(line, path, where):
                continue  # an image without labels
            image = named_by(files, path, number, line, labelled, split)
            if split == "train" and image in splits:
                raise DataError(
                    f"'{files.full(path)}', line {number}: '{line}' is in '{lists[splits[image]]}', too: expected it "
                    "in one list"
                )
            splits.setdefault(image, split)
    return SplitLists(lists, splits)


def unread_lists(files: Files, images: Sequence[str]) -> list[str]:
    """Texts of which most lines name images, and which are named after no split."""
    texts = _texts(files)
    if not texts:
        return []
    labelled, others = NamedFiles(images), NamedFiles({*files.images} - {*images})
    return [path for path in texts if _is_list(files, path, labelled, others)]


def _texts(files: Files) -> list[str]:
    """The texts that are no labels of an image of the same name."""
    return [path for path in files.with_suffix(".txt") if not files.images_named(PurePosixPath(path).stem)]


def _is_list(files: Files, path: str, *named: NamedFiles) -> bool:
    lines: list[str] = []
    with open(files.root / path, encoding="utf-8-sig", errors="replace") as file:
        for line in file:
            if line.strip():
                lines.append(line)
            if len(lines) == _LOOKED_AT:
                break
    return sum(any(one.of(line, path) for one in named) for line in lines) > len(lines) / 2


def _described(files: Files) -> list[tuple[str, str]]:
    """The splits and lists that Darknet's obj.data names (``train = data/train.txt``)."""
    texts = NamedFiles(files.with_suffix(".txt"))
    found: list[tuple[str, str]] = []
    for path in files.with_suffix(".data"):
        text = (files.root / path).read_text(encoding="utf-8-sig", errors="replace")
        pairs = [[part.strip() for part in line.split("=", 1)] for line in text.splitlines() if "=" in line]
        for key, value in pairs:
            if key in _SPLIT_KEYS and value and len(there := texts.of(value, path)) == 1:
                found.append((_SPLIT_KEYS[key], there[0]))
    return list(dict.fromkeys(found))


def say(lists: Iterable[str]) -> str:
    """What is said of lists that are read."""
    return f"The splits are those of {quoted(lists)}."
