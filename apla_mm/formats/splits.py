"""Which samples train, and which are validated on."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ..data.reading import DataError
from ..text import quoted
from .files import Files
from .split_lists import find_split_lists, say, unread_lists

T = TypeVar("T")


def train_and_val(
    splits: Mapping[str | None, Sequence[T]],
    names: Mapping[str | None, Sequence[str]],
    held_out: float,
    seed: int,
    files: Files | None = None,
) -> tuple[dict[str, list[T]], list[str]]:
    """Make a training and a validation split of those that there are.

    Args:
        splits: Samples of 'train', 'val', 'test', and None for those of no split.
        names: The samples' names, by which they are chosen where there is no split for validation.
        held_out: The share of samples that are then validated on.
        seed: Another seed chooses others.
        files: Where lists of splits are looked for, by which samples are split again; None where they are already.

    Returns:
        Samples of 'train' and 'val', and notes.

    Raises:
        DataError: There are too few, or lists contradict themselves.
    """
    notes: list[str] = []
    if files is not None:
        splits, names, notes = _by_lists(files, splits, names)
    there = {split: list(samples) for split, samples in splits.items() if samples}
    train, val, test, loose = (there.get(split, []) for split in ("train", "val", "test", None))
    if train and loose:
        notes.append(f"Images in no folder or list of a split are left out, as there are such splits ({len(loose):,}).")
    elif loose:
        train = loose
        if not val and not test:
            unread = unread_lists(files, names[None]) if files is not None else []
            notes.append(
                f"There are no folders of splits; texts that list images, and are named after no split, are not read "
                f"({len(unread):,}): {quoted(unread, 4)}."
                if unread
                else "There are no folders or lists of splits."
            )
    if not train:
        raise DataError(
            f"there is no training split, only {', '.join(f'{split} ({len(s):,})' for split, s in there.items())}: "
            "expected a folder or list called train, or images in no split"
        )
    if val and test:
        notes.append(f"The test split is left out (images: {len(test):,}); val is what is validated on.")
    elif test:
        val = test
        notes.append(f"There is no val split: the test split is validated on (images: {len(test):,}).")
    if not val:
        source = "train" if there.get("train") else None
        chosen = _held_out(names[source], held_out, seed)
        val = [one for one, out in zip(train, chosen, strict=True) if out]
        train = [one for one, out in zip(train, chosen, strict=True) if not out]
        notes.append(
            f"Held out for validation: {len(val):,} of {len(chosen):,} images ({len(val) / len(chosen):.0%}), "
            f"chosen by a hash of their names and the seed {seed}."
        )
    return {"train": train, "val": val}, notes


def _by_lists(
    files: Files, splits: Mapping[str | None, Sequence[T]], names: Mapping[str | None, Sequence[str]]
) -> tuple[Mapping[str | None, Sequence[T]], Mapping[str | None, Sequence[str]], list[str]]:
    """The samples and their names in the splits of lists, if there are any."""
    found = find_split_lists(files, [name for ones in names.values() for name in ones])
    if not found.lists:
        return splits, names, []
    again: dict[str | None, list[T]] = {}
    named: dict[str | None, list[str]] = {}
    for split, samples in splits.items():
        for sample, name in zip(samples, names[split], strict=True):
            again.setdefault(found.split_of(name, split), []).append(sample)
            named.setdefault(found.split_of(name, split), []).append(name)
    return again, named, [say(found.lists.values())]


def _held_out(names: Sequence[str], share: float, seed: int) -> list[bool]:
    """Whether each sample is held out: at least one is, and one is not."""
    if len(names) < 2:
        raise DataError(f"there is {len(names)} image without a split: expected two at least, one to validate on")
    count = min(max(round(share * len(names)), 1), len(names) - 1)
    ranked = sorted(range(len(names)), key=lambda i: hashlib.sha256(f"{seed}/{names[i]}".encode()).digest())
    chosen = set(ranked[:count])
    return [i in chosen for i in range(len(names))]
