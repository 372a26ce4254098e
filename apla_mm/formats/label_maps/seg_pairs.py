"""Which files of a folder are images, which are label maps, and which belong together."""

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

import numpy as np
from PIL import Image

from ...data.reading import DataError
from ...text import quoted
from ..files import Files, split_of, words_of
from .pairing import Name, Rule, find_rule

_MAP_WORD = re.compile(
    "(mask|label|labelmap|annotation|annot|ann|gt|groundtruth|truth|seg|segmap|segmentation|segmentationclass|"
    "segmentationclassaug|semantic|semseg|labelid|labeltrainid|target|gtfine|gtcoarse|trimap|stuffthingmap)s?"
)
_IMAGE_WORD = re.compile("(image|img|jpegimage|leftimg8bit|rgb|photo|picture|input)s?")
#: words of label maps that are no classes of pixels, or none of one number each
_OTHER_WORD = re.compile(
    "(colou?r|colou?red|rgb|vis|overlay|instance|instanceid|instancetrainid|inst|segmentationobject|object|panoptic|"
    "depth|disparity|edge|boundary|boundarie)s?"
)
_IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".bmp", ".webp", ".jp2", ".ppm")
_MOST_VALUES = 48  # of a grey image that is a label map, where names do not tell


@dataclass
class Pairs:
    """Images and their label maps.

    Attributes:
        pairs: For each split, paths of images and their label maps.
        notes: How they were found, and what has no partner.
    """

    pairs: dict[str | None, list[tuple[str, str]]]
    notes: list[str] = field(default_factory=list)


@dataclass
class _Attempt:
    how: str
    images: list[str]
    maps: list[str]
    families: list[tuple[Rule, dict[str, str]]]  # images of label maps, one kind of label maps after the other

    @property
    def most(self) -> int:
        """The pairs of one kind of label maps."""
        return max((len(pairs) for _, pairs in self.families), default=0)

    @property
    def share(self) -> float:
        return sum(len(pairs) for _, pairs in self.families) / len(self.maps) if self.maps else 0.0


def find_pairs(files: Files) -> Pairs | None:
    """Pair images and label maps by their names.

    Args:
        files: The files.

    Returns:
        The pairs; None if nothing looks like images with label maps.

    Raises:
        DataError: Several kinds of label maps fit the images, or none by its names.
    """
    best: _Attempt | None = None
    named: _Attempt | None = None
    for how, is_map in _ways(files):
        maps = [path for path in files.images if is_map(path)]
        images = sorted({*files.images} - {*maps})
        attempt = _Attempt(how, images, maps, _families(images, maps))
        if named is None and images and maps and "names" in how:
            named = attempt
        if attempt.share >= 0.5 and (best is None or attempt.most > best.most):
            best = attempt
        if best is not None and best.share > 0.9 and best.most >= len(best.images) / 2:
            break
    if best is not None:
        return _told(best)
    if named is not None:
        raise DataError(
            f"by {named.how} there are {len(named.images):,} images, {quoted(named.images, 2)}, and "
            f"{len(named.maps):,} label maps, {quoted(named.maps, 2)}, and no rule pairs more than {named.most:,} of "
            "them by their names: expected names with a part in common that is all the same, numbers' zeros included; "
            "rename one kind"
        )
    return None


def _ways(files: Files) -> list[tuple[str, Callable[[str], bool]]]:
    """Ways to tell label maps from images, the surest first."""

    def folders(path: str) -> set[str]:
        return {word for folder in split_of(path)[1].split("/")[:-1] for word in words_of(folder)}

    def stem(path: str) -> set[str]:
        return set(words_of(PurePosixPath(path).stem))

    def suffix(path: str) -> str:
        return PurePosixPath(path).suffix.lower()

    has_image_folders = any(_has(_IMAGE_WORD, folders(path)) for path in files.images)
    ways: list[tuple[str, Callable[[str], bool]]] = [
        ("the names of folders", lambda path: _has(_MAP_WORD, folders(path))),
        ("the names of files", lambda path: _has(_MAP_WORD, stem(path))),
    ]
    if has_image_folders:
        ways.append(("the names of folders", lambda path: not _has(_IMAGE_WORD, folders(path))))
    ways.append(("their suffixes", lambda path: suffix(path) not in _IMAGE_SUFFIXES))
    values = _Values(files)
    ways.append((f"their values (label maps are grey, of {_MOST_VALUES} values at most)", values.few))
    return ways


class _Values:
    """How many values images have, each read once, if ever."""

    def __init__(self, files: Files) -> None:
        self._files, self._few = files, dict[str, bool]()

    def few(self, path: str) -> bool:
        """Whether an image is grey and has few values."""
        if path not in self._few:
            try:
                with Image.open(self._files.full(path)) as image:
                    grey = image.mode in ("1", "L", "P", "I", "I;16")
                    self._few[path] = grey and len(np.unique(np.asarray(image))) <= _MOST_VALUES
            except (OSError, ValueError):
                self._few[path] = False
        return self._few[path]


def _families(images: Sequence[str], maps: Sequence[str]) -> list[tuple[Rule, dict[str, str]]]:
    """Rules that pair label maps with images, of one kind of label maps after the other."""
    found: list[tuple[Rule, dict[str, str]]] = []
    left = list(maps)
    while left and images:
        options = (_pair(images, left, by_name) for by_name in (False, True))
        rule, pairs = max(options, key=lambda option: len(option[1]))
        if rule is None or (found and len({*pairs.values()} & {*found[0][1].values()}) < max(len(found[0][1]) / 2, 2)):
            break  # another kind is of the same images
        found.append((rule, pairs))
        left = [path for path in left if path not in pairs]
    return found


def _pair(images: Sequence[str], maps: Sequence[str], by_name: bool) -> tuple[Rule | None, dict[str, str]]:
    """The rule that pairs most, and the images of label maps.

    Args:
        images: Paths.
        maps: Paths.
        by_name: The folders do not count.
    """
    # else the images, or the label maps, of all splits lie together
    of_split = all(any(split_of(path)[0] for path in paths) for paths in (images, maps))
    named_images, named_maps = _named(images, of_split, by_name), _named(maps, of_split, by_name)
    if by_name and (len(named_images) < len(images) or len(named_maps) < len(maps)):
        return None, {}  # two files of one name
    found = find_rule(named_images, named_maps)
    if found is None:
        return None, {}
    rule, pairs = found
    return rule, {named_maps[label_map]: named_images[image] for label_map, image in pairs.items()}


def _named(paths: Sequence[str], of_split: bool, by_name: bool) -> dict[Name, str]:
    named: dict[Name, str] = {}
    for path in paths:
        split, rest = split_of(path)
        name = PurePosixPath(rest)
        named.setdefault((split if of_split else None, name.stem if by_name else str(name.with_suffix(""))), path)
    return named


def _told(attempt: _Attempt) -> Pairs:
    """The pairs of the kind of label maps that has one class of each pixel, and what is said of the rest."""
    kept = [(rule, pairs) for rule, pairs in attempt.families if not _is_other(rule)] or attempt.families
    trained = [(rule, pairs) for rule, pairs in kept if "labeltrainids" in words_of(rule.map_end)]
    kept = trained or kept
    if len(kept) > 1:
        raise DataError(
            f"each image has {len(kept)} label maps by their names: {'; '.join(str(rule) for rule, _ in kept)}. "
            "Expected one: leave those to be learned in the folder, and move the others away"
        )
    (rule, pairs), notes = kept[0], []
    _check_one_split(attempt, pairs)
    notes.append(
        f"Label maps are told from images by {attempt.how}, and paired by the rule {rule} ({len(pairs):,} pairs)."
    )
    for other, left_out in attempt.families:
        if other != rule:
            notes.append(
                f"Other files of images' names are left out: '{other.map_start}*{other.map_end}' ({len(left_out):,})."
            )
    taken = {path for _, ones in attempt.families for path in ones}
    alone = [path for path in attempt.maps if path not in taken]
    if alone:
        notes.append(f"Label maps without an image are left out ({len(alone):,}): {quoted(alone, 4)}.")
    bare = sorted({*attempt.images} - {*pairs.values()})
    if bare:
        notes.append(f"Images without a label map are left out ({len(bare):,}): {quoted(bare, 4)}.")
    splits: dict[str | None, list[tuple[str, str]]] = {}
    for label_map, image in sorted(pairs.items(), key=lambda pair: pair[1]):
        splits.setdefault(split_of(image)[0] or split_of(label_map)[0], []).append((image, label_map))
    return Pairs(splits, notes)


def _check_one_split(attempt: _Attempt, pairs: dict[str, str]) -> None:
    """Check that where images alone, or label maps alone, are in folders of splits, each has one partner in all splits.

    Raises:
        DataError: Files of several splits have the name.
    """
    for ones, others, kind in ((pairs.items(), attempt.images, "images"), (_turned(pairs), attempt.maps, "label maps")):
        named: dict[str, list[str]] = {}
        for path in others:
            named.setdefault(_without_split(path), []).append(path)
        for alone, partner in ones:
            same = named[_without_split(partner)]
            if split_of(alone)[0] is None and len({split_of(path)[0] for path in same}) > 1:
                raise DataError(
                    f"'{alone}' is in no folder of a split, and fits {kind} of several: {quoted(same, 4)}. Expected "
                    "one; put it in a folder of its split, or rename the others"
                )


def _turned(pairs: dict[str, str]) -> list[tuple[str, str]]:
    return [(image, label_map) for label_map, image in pairs.items()]


def _without_split(path: str) -> str:
    return str(PurePosixPath(split_of(path)[1]).with_suffix(""))


def _is_other(rule: Rule) -> bool:
    words = {*words_of(rule.map_end), *(word for part in rule.map_start.split("/") for word in words_of(part))}
    return _has(_OTHER_WORD, words)


def _has(pattern: re.Pattern[str], words: Collection[str]) -> bool:
    return any(pattern.fullmatch(word) for word in words)
