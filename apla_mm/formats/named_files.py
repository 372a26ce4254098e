"""Files as the lines of lists name them."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

from ..data.similar_files import IMAGE_SUFFIXES
from .files import split_of


class NamedFiles:
    """Files that lists name by a path, the end of one, or a name, with or without the suffix.

    Args:
        paths: Paths with /, below one folder.
    """

    def __init__(self, paths: Iterable[str]) -> None:
        self._named: dict[str, list[tuple[str, str]]] = {}  # by name and by stem: paths as they are so, and files
        self._folders: set[str] = set()  # that files lie in, as paths and ends of paths
        for path in paths:
            pure = PurePosixPath(path)
            for called in dict.fromkeys((path, str(pure.with_suffix("")))):
                self._named.setdefault(PurePosixPath(called).name, []).append((called, path))
            parts = pure.parts[:-1]
            self._folders.update("/".join(parts[i:]) for i in range(len(parts)))

    def of(self, line: str, near: str = "", split: str | None = None) -> list[str]:
        """The files that a line names.

        The line, or its first word, is a path from the list's folder or the common one, or the end of one, or has such
        an end after folders that are not there.

        Args:
            line: A line that is not empty.
            near: The list's path; of several files those count that lie nearest to it.
            split: The list's split: folders of others that the line does not name do not count.

        Returns:
            None where nothing is called so, several where the line does not tell.
        """
        whole, first = _parts(line), _parts(line.split()[0])
        folder = PurePosixPath(near).parent.parts
        for parts in (*whole, *first):
            for path in ((*folder, *parts), parts):
                if found := self._ending(path, lambda before: not before):
                    return found
        words = dict.fromkeys((*whole, *first))
        ends = [parts for parts in words] + [end for parts in (*first, *whole) for end in self._shorter(parts)]
        for end in ends:
            found = self._ending(end, lambda before: split is None or split_of(before)[0] in (split, None))
            if found:
                return _nearest(found, folder)
        return []

    def _ending(self, parts: tuple[str, ...], fits: Callable[[str], bool]) -> list[str]:
        """The files whose paths end so, with or without their suffix, if what comes before fits."""
        end = "/".join(parts)
        named = self._named.get(parts[-1], []) if parts else []
        paths = (path for called, path in named if f"/{called}".endswith(f"/{end}") and fits(called.removesuffix(end)))
        return list(dict.fromkeys(paths))

    def _shorter(self, parts: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
        """The ends of a path, up to the one whose folder is there: then the file is not."""
        for i in range(1, len(parts)):
            if "/".join(parts[i - 1 : -1]) in self._folders:
                return
            yield parts[i:]


def _parts(text: str) -> list[tuple[str, ...]]:
    """The parts of a path, and those without an image's suffix."""
    path = PurePosixPath(text.strip().replace("\\", "/"))
    paths = [path, path.with_suffix("")] if path.suffix.lower() in IMAGE_SUFFIXES else [path]
    return [tuple(part for part in one.parts if part not in ("/", "..")) for one in paths]


def _nearest(paths: list[str], folder: tuple[str, ...]) -> list[str]:
    """Those paths that have the most folders in common with another."""

    def common(path: str) -> int:
        pairs = zip(PurePosixPath(path).parts, folder, strict=False)
        return next((i for i, (one, other) in enumerate(pairs) if one != other), min(path.count("/"), len(folder)))

    most = max(map(common, paths))
    return [path for path in paths if common(path) == most]
