"""The files below a folder, and what their paths say."""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from os.path import splitext
from pathlib import Path, PurePosixPath

import mmcv
from PIL import Image

from ..data.left_out import files_in
from ..data.pipelines import turned_by_exif
from ..data.reading import DataError, UnreadableError
from ..data.similar_files import IMAGE_SUFFIXES
from ..text import first_few

_SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {word: split for split, words in _SPLITS.items() for word in words}


class Files:
    """The files below a folder, without hidden ones.

    Args:
        root: The folder.
        without: A folder whose files do not count, as they are made here.

    Attributes:
        root: The folder, absolute.
        paths: Paths below it, with /, sorted.

    Raises:
        DataError: It is no folder.
    """

    def __init__(self, root: str | Path, without: str | Path | None = None) -> None:
        self.root = Path(root).absolute()
        if not self.root.is_dir():
            what = "is a file" if self.root.exists() else "does not exist"
            raise DataError(f"the folder of the data '{root}' {what} (looked in {Path.cwd()}): expected a folder")
        made = None if without is None else Path(without).absolute()
        if made == self.root:
            raise ValueError(f"files would be written into the data's folder '{root}' itself: name another folder")
        inside = made if made is not None and self.root in made.parents else None
        self.paths = sorted(
            Path(path).as_posix()
            for path in files_in(str(self.root))
            if not _is_hidden(path) and (inside is None or inside not in (self.root / path).parents)
        )

    @cached_property
    def images(self) -> list[str]:
        """Those that are images by their suffixes."""
        return [path for path in self.paths if PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES]

    @cached_property
    def _images_named(self) -> dict[str, list[str]]:
        named: dict[str, list[str]] = {}
        for path in self.images:
            for name in {PurePosixPath(path).name, PurePosixPath(path).stem}:
                named.setdefault(name, []).append(path)
        return named

    def images_named(self, name: str) -> list[str]:
        """The images of a file name, with or without its suffix, wherever they lie."""
        return self._images_named.get(name, [])

    def with_suffix(self, *suffixes: str) -> list[str]:
        """The files of some suffixes, which are in lower case."""
        return [path for path in self.paths if splitext(path)[1].lower() in suffixes]

    def full(self, path: str) -> str:
        """A file's absolute path."""
        return str(self.root / path)

    def image_size(self, path: str) -> tuple[int, int]:
        """Width and height of an image as training reads it, turned where its EXIF data say so.

        Raises:
            UnreadableError: It is no image.
        """
        try:
            with Image.open(self.root / path) as image:
                width, height = image.size
        except (OSError, ValueError, Image.DecompressionBombError):
            try:
                height, width = mmcv.imread(self.full(path)).shape[:2]
            except Exception as error:
                raise UnreadableError(f"the image '{self.full(path)}' cannot be read: {error}") from error
        return (height, width) if turned_by_exif(self.full(path)) else (width, height)

    def summary(self) -> str:
        """How many files of each suffix lie in each folder."""
        counts = Counter((str(PurePosixPath(path).parent), splitext(path)[1]) for path in self.paths)
        kinds = (f"{n:,} '*{suffix}' in '{folder}'" for (folder, suffix), n in sorted(counts.items()))
        return first_few(kinds, 16) or "no file"


def words_of(name: str) -> list[str]:
    """The words of a file's or folder's name, in lower case and without trailing digits."""
    parts = re.split(r"[_\-. ]+", name.lower())
    return [word for word in (part.rstrip("0123456789") for part in parts) if word]


def split_of_name(name: str) -> str | None:
    """The split that a name has a word of, such as 'val' for 'instances_val2017'; None without one."""
    return next((_SPLIT_OF[word] for word in words_of(name) if word in _SPLIT_OF), None)


def split_of(path: str) -> tuple[str | None, str]:
    """The split that one of a path's folders is named after, and the path without the word.

    Args:
        path: A path with /.

    Returns:
        'train', 'val', 'test' or None; and the path, such as 'images/a.jpg' for 'images/val/a.jpg' or
        'val_images/a.jpg'.
    """
    *folders, name = path.split("/")
    for i, folder in enumerate(folders):
        split = split_of_name(folder)
        if split is not None:
            parts = re.split(r"[_\-. ]+", folder)
            rest = "_".join(part for part in parts if part.lower().rstrip("0123456789") not in _SPLITS[split])
            return split, "/".join([*folders[:i], *filter(None, [rest]), *folders[i + 1 :], name])
    return None, path


def split_folder_words(paths: Iterable[str]) -> set[str]:
    """The names of the folders that say a split."""
    return {folder for path in paths for folder in path.split("/")[:-1] if split_of_name(folder)}


def of_no_other_split(candidates: Iterable[str], near: str, name: str = "") -> list[str]:
    """The candidates that are in no folder of another split than the one that a file lies in.

    Args:
        candidates: Paths.
        near: The file's path.
        name: What the file calls them: folders that it names itself, such as those of 'val2014/1.jpg', do not count.
    """
    split = split_of(near)[0]
    return [path for path in candidates if not split or split_of(path.removesuffix(name))[0] in (split, None)]


def one_of(candidates: Sequence[str], near: str, name: str = "") -> str | None:
    """The only candidate, or the only one of the split, or in the folder, that another file lies in.

    Candidates in folders of other splits are none.

    Args:
        candidates: Paths.
        near: The other file's path.
        name: See :func:`of_no_other_split`.
    """
    candidates = of_no_other_split(candidates, near, name)
    split = split_of(near)[0] or split_of_name(PurePosixPath(near).stem)
    folder = PurePosixPath(near).parent
    same_split = [path for path in candidates if split_of(path)[0] == split]
    same_folder = [path for path in candidates if PurePosixPath(path).parent == folder]
    return next((few[0] for few in (candidates, same_split, same_folder) if len(few) == 1), None)


def _is_hidden(path: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split(os.sep))
