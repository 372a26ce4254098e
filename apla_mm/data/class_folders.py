"""Data sets of images that lie in a folder for each class: their classes, and whether they can be meant."""

import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from os.path import expanduser, isdir, join, splitext
from typing import Any, NamedTuple

from ..text import quoted
from .folders import LOADERS, dataset_class, datasets_of, is_local
from .left_out import files_in
from .reading import DataError


class ClassFolders(NamedTuple):
    """A data set in folders.

    Attributes:
        loader: The data loader that reads it.
        folder: Where the folders of classes are.
        classes: Their names, sorted: labels count them.
        settings: The data set's config.
    """

    loader: str
    folder: str
    classes: list[str]
    settings: MutableMapping[str, Any]


def class_folders_of(cfg: Mapping[str, Any], loaders: Sequence[str] = LOADERS) -> Iterator[ClassFolders]:
    """The data sets of a config whose labels are folders, where these exist on this machine.

    Args:
        cfg: A whole config.
        loaders: The data loaders whose data sets are looked at.
    """
    for loader in loaders:
        for settings in datasets_of(cfg, loader):
            folder = _folder(settings, cfg.get("default_scope"))
            if folder is not None and isdir(folder):
                with os.scandir(folder) as entries:
                    yield ClassFolders(loader, folder, sorted(e.name for e in entries if e.is_dir()), settings)


def _folder(settings: Mapping[str, Any], scope: str | None) -> str | None:
    if settings.get("ann_file") or not settings.get("with_label", True):
        return None
    cls = dataset_class(settings, None if "." in str(settings.get("type")) else scope)
    module = sys.modules.get("mmpretrain.datasets.custom")  # without mmpretrain there is no such class
    if module is None or not isinstance(cls, type):
        return None
    if getattr(cls, "load_data_list", None) is not module.CustomDataset.load_data_list:
        return None
    prefix = settings.get("data_prefix") or ""
    prefix = expanduser(prefix) if isinstance(prefix, str) else prefix.get("img_path", "")
    path = join(settings.get("data_root") or "", prefix)
    return path if path and is_local(path, settings.get("backend_args")) else None


def check_class_folders(cfg: Mapping[str, Any], loaders: Sequence[str] = LOADERS) -> None:
    """Check that folders of classes are those of training, and that each has something to learn from.

    Args:
        cfg: A whole config.
        loaders: The data loaders that will be used. The test's are compared with those of training too, if these exist.

    Raises:
        DataError: There are fewer than two classes, one has no image to train on, or data sets have different ones.
    """
    found = list(class_folders_of(cfg))
    for one in found:
        if one.loader not in loaders:
            continue
        where = f"{one.loader}: '{one.folder}'"
        if len(one.classes) < 2:
            told = f"the folder '{one.classes[0]}' alone" if one.classes else "no folder"
            raise DataError(
                f"{where} holds {told}: expected a folder of images for each of two or more classes, as "
                f"{join(one.folder, 'CLASS', 'image.jpg')}"
            )
        _check_names(where, one)
        first = found[0]
        if one.classes != first.classes:
            missing = [name for name in first.classes if name not in one.classes]
            more = [name for name in one.classes if name not in first.classes]
            wrong = [f"lacks {quoted(missing, 5)}"] if missing else []
            wrong += [f"has {quoted(more, 5)} besides"] if more else []
            raise DataError(
                f"{where} {' and '.join(wrong)}: its folders must be the classes of {first.loader}, '{first.folder}', "
                "for labels count folders in the order of their names; an empty folder is a class without an image"
            )
        if one.loader == "train_dataloader":
            for name in one.classes:
                _check_has_images(where, join(one.folder, name), one.settings)


def _check_names(where: str, one: ClassFolders) -> None:
    """Names of classes that are folders' names must be in their order; others are what the classes are called."""
    names = list((one.settings.get("metainfo") or {}).get("classes") or one.classes)
    if names != one.classes and (set(names) & set(one.classes) or len(names) != len(one.classes)):
        raise DataError(
            f"{where} has the classes {quoted(one.classes, 5)}, in this order, and metainfo.classes is "
            f"{quoted(names, 5)}: labels count folders in the order of their names; leave the option classes out"
        )


def _check_has_images(where: str, folder: str, settings: Mapping[str, Any]) -> None:
    taken = settings.get("extensions") or (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif")
    suffixes = Counter(splitext(name)[1].lower() for name in files_in(folder))
    if not any(suffixes[suffix] for suffix in taken):
        kinds = ", ".join(f"{count:,} '*{suffix}'" for suffix, count in suffixes.most_common(4))
        found = f"no file '*{', *'.join(taken)}' but {kinds}" if kinds else "no image"
        raise DataError(
            f"{where} has {found} of the class '{os.path.basename(folder)}': add images, convert them, or remove the "
            "folder in training, validation and test"
        )
