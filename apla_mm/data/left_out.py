"""What lies in a data set's folders and is no part of it."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from os.path import isdir, join, normpath, relpath, splitext
from typing import Any

from ..text import quoted
from .folders import is_local, is_plain_seg
from .reading import DataError
from .similar_files import IMAGE_SUFFIXES


def check_nothing_left_out(dataset: Any, infos: Sequence[dict[str, Any]]) -> tuple[str, list[str]]:
    """Compare a segmentation data set with the files in its folders.

    Args:
        dataset: A data set of mmseg's BaseSegDataset or derived from it.
        infos: What it says of all of its samples.

    Returns:
        What the log says, empty if there is nothing else in the folders; and what is suspicious.

    Raises:
        DataError: There are images with label maps that the data set leaves out for their suffix alone.
    """
    folder = dataset.data_prefix.get("img_path")
    label_folder = dataset.data_prefix.get("seg_map_path")
    if not is_plain_seg(type(dataset)) or not folder or not is_local(folder, dataset.backend_args):
        return "", []
    if not isdir(folder):
        return "", []
    taken = {normpath(info["img_path"]) for info in infos}
    label_maps = {normpath(info["seg_map_path"]) for info in infos if info.get("seg_map_path")}
    listed = bool(dataset.ann_file) and not isdir(dataset.ann_file)
    partial = dataset._indices is not None
    same = label_folder and normpath(label_folder) == normpath(folder)
    files = images_in(folder)
    there = [name for name in files if normpath(join(folder, name)) not in taken | label_maps]
    if same:
        there = [name for name in there if not name.endswith(dataset.seg_map_suffix)]
    if listed or partial:
        what = f"'{dataset.ann_file}'" if listed else f"indices={dataset._indices}"
        found = len(files) - len(there)
        said = f"{what} takes {found:,} of {len(files):,} image files in '{folder}'" if there else ""
        return said, []
    dangling = [name for name in there if os.path.islink(join(folder, name)) and not os.path.exists(join(folder, name))]
    if dangling:
        raise DataError(
            f"{len(dangling):,} images in '{folder}' are links to files that do not exist, and would be left out: "
            f"{quoted(dangling, 4)}; mend or remove them"
        )
    has_map = label_folder and _has_label_map(label_folder, dataset.seg_map_suffix, label_maps)
    labelled = [name for name in there if has_map and has_map(name)]
    if labelled:
        suffixes = Counter(_suffix(name) for name in labelled)
        kinds = ", ".join(f"{count:,} '*{suffix}'" for suffix, count in suffixes.most_common())
        raise DataError(
            f"the data set takes {len(taken):,} files '*{dataset.img_suffix}' of '{folder}' and leaves out "
            f"{len(labelled):,} images that have label maps, {kinds}: {quoted(labelled, 4)}. Expected one suffix, of "
            f"one case: rename them to '*{dataset.img_suffix}' (files are read by their content), set img_suffix, or "
            "list the samples in ann_file"
        )
    warnings = []
    if label_folder and is_local(label_folder) and isdir(label_folder) and label_maps:
        alone = [
            name
            for name in files_in(label_folder)
            if name.endswith(dataset.seg_map_suffix) and normpath(join(label_folder, name)) not in label_maps | taken
        ]
        if alone:
            warnings.append(
                f"{len(alone):,} label maps '*{dataset.seg_map_suffix}' in '{label_folder}' have no image "
                f"'*{dataset.img_suffix}' in '{folder}', and are not used: {quoted(alone, 4)}"
            )
    if not there:
        return "", warnings
    text = f"{len(there):,} more image files in '{folder}' are not taken, as they are not '*{dataset.img_suffix}'"
    reason = " or have no label map" if label_folder else ""
    said = f"{text}{reason}: {quoted(there, 4)}"
    return ("", [*warnings, said]) if not label_folder else (said, warnings)


def images_not_listed(folder: str | None, paths: Sequence[str], backend_args: Any = None) -> str:
    """What the log says of image files in a folder that an annotation file does not list.

    Args:
        folder: The folder.
        paths: The images that it lists.
        backend_args: Where they are kept, as in mmengine's data sets.
    """
    if not folder or not is_local(folder, backend_args) or not isdir(folder):
        return ""
    taken = set(map(normpath, paths))
    there = [name for name in images_in(folder) if normpath(join(folder, name)) not in taken]
    return f"{len(there):,} image files in '{folder}' are not taken: {quoted(there, 4)}" if there else ""


def files_in(folder: str) -> Iterator[str]:
    """The files below a folder, links to what does not exist among them, without hidden ones; as mmengine lists them.

    Args:
        folder: The folder.

    Yields:
        Paths below it.
    """
    seen: set[str] = set()
    waiting = [folder]
    while waiting:
        one = waiting.pop()
        real = os.path.realpath(one)
        if real in seen:
            continue
        seen.add(real)
        with os.scandir(one) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append(entry.path)
                elif not entry.name.startswith("."):
                    yield relpath(entry.path, folder)


def images_in(folder: str) -> list[str]:
    """The files below a folder that are images by their suffixes, of any case."""
    return sorted(name for name in files_in(folder) if splitext(name)[1].lower() in IMAGE_SUFFIXES)


def _suffix(name: str) -> str:
    return splitext(name)[1]


def _has_label_map(folder: str, suffix: str, used: set[str]) -> Any:
    """Tells of an image file whether a label map, of no other image, is there for it."""

    def has(name: str) -> bool:
        path = join(folder, splitext(name)[0] + suffix)
        return normpath(path) not in used and os.path.isfile(path)

    return has
