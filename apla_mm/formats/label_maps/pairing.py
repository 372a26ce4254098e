"""Finds the rule by which the names of images and of their label maps differ."""

import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass

#: a sample's split, if it has one, and its file's path without the split's word and without its suffix
Name = tuple[str | None, str]

_MOST_RULES = 400
_MOST_PLACES = 24  # where a part of a name is looked for in those of images
_TRIED = 5  # label maps that rules are made of


@dataclass(frozen=True)
class Rule:
    """An image ``<image_start>KEY<image_end>`` has the label map ``<map_start>KEY<map_end>``.

    The starts include the folders.
    """

    image_start: str
    image_end: str
    map_start: str
    map_end: str

    def __str__(self) -> str:
        return f"'{self.image_start}*{self.image_end}' has the label map '{self.map_start}*{self.map_end}'"

    @property
    def length(self) -> int:
        """How many letters are not of the key."""
        return len(self.image_start + self.image_end + self.map_start + self.map_end)

    def image_of(self, label_map: Name) -> Name | None:
        """The name of a label map's image; None where the rule does not tell."""
        split, name = label_map
        start, end = len(self.map_start), len(name) - len(self.map_end)
        if start >= end or not name.startswith(self.map_start) or not name.endswith(self.map_end):
            return None
        return split, self.image_start + name[start:end] + self.image_end

    def pairs(self, images: Collection[Name], label_maps: Collection[Name]) -> dict[Name, Name]:
        """The image of each label map that has one."""
        found = {label_map: self.image_of(label_map) for label_map in label_maps}
        return {label_map: image for label_map, image in found.items() if image in images}  # type: ignore[misc]


def find_rule(images: Collection[Name], label_maps: Collection[Name]) -> tuple[Rule, dict[Name, Name]] | None:
    """Find the rule that pairs most label maps with an image; of several, the one with the longest key.

    Args:
        images: The images' names.
        label_maps: The label maps'.

    Returns:
        The rule, and the image of each label map that has one; None if no rule pairs any.
    """
    images, ordered = set(images), sorted(label_maps, key=str)
    text = "\n".join(["", *sorted({name for _, name in images}), ""])
    best: tuple[int, int, Rule] | None = None
    step = max(len(ordered) // _TRIED, 1)
    for _, name in ordered[::step][:_TRIED]:
        tried: set[Rule] = set()
        for length in range(len(name), 0, -1):
            for rule in _rules(name, length, text):
                if rule in tried:
                    continue
                tried.add(rule)
                rank = (len(rule.pairs(images, ordered)), -rule.length, rule)
                if rank[0] and (best is None or rank[:2] > best[:2]):
                    best = rank
            if len(tried) > _MOST_RULES or (best is not None and best[0] == len(ordered)):
                break
        if best is not None and best[0] == len(ordered):
            break
    return None if best is None else _with_folders(best[2], best[2].pairs(images, ordered))


def _with_folders(rule: Rule, pairs: dict[Name, Name]) -> tuple[Rule, dict[Name, Name]]:
    """The same rule, with whole names of the folders that all keys have in common."""
    keys = [name[len(rule.map_start) : len(name) - len(rule.map_end)] for _, name in pairs]
    first, last = min(keys), max(keys)  # what these have in common, all have
    same = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    folders = first[: first.rfind("/", 0, same) + 1]
    longer = Rule(rule.image_start + folders, rule.image_end, rule.map_start + folders, rule.map_end)
    return longer, pairs


def _rules(name: str, length: int, text: str) -> Iterator[Rule]:
    """The rules by which a part of a label map's name, of some length, is a part of images' names."""
    for start in range(len(name) - length + 1):
        key = name[start : start + length]
        if key.endswith("/") or _cuts_number(name, start, start + length):
            continue
        for count, place in enumerate(re.finditer(re.escape(key), text)):
            if count == _MOST_PLACES:
                break
            if _cuts_number(text, *place.span()):
                continue
            first = text.rindex("\n", 0, place.start() + 1) + 1
            last = text.index("\n", place.end())
            rule = Rule(text[first : place.start()], text[place.end() : last], name[:start], name[start + length :])
            if "/" not in rule.image_end + rule.map_end:  # a key is more than a part of folders' names
                yield rule


def _cuts_number(text: str, start: int, end: int) -> bool:
    """Whether a part of a text starts or ends within a number."""
    before = start > 0 and text[start - 1].isdigit() and text[start].isdigit()
    return before or (end < len(text) and text[end - 1].isdigit() and text[end].isdigit())
