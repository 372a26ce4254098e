"""How many pixels and images of a data set have each label, and what is wrong with the set as a whole."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from threading import Lock

import numpy as np

from ...text import first_few, table
from ..reading import DataError
from .label_rules import LabelRules

_MOST_ROWS = 20
_CONVERT = (
    "python -c \"import sys, numpy, PIL.Image as I; [I.fromarray((numpy.array(I.open(p)) > 127).astype('uint8'))"
    '.save(p) for p in sys.argv[1:]]" FOLDER/*.png'
)


class LabelCounts:
    """Pixels and images for each label of the label maps that were read.

    Attributes:
        pixels: Label -> how many pixels.
        images: Label -> how many images.
        read: How many label maps were read.
        missed: How many there are besides, for which the time was too short, or which could not be read.
        reduced: Whether some of them are read with reduce_zero_label.
    """

    def __init__(self) -> None:
        self.pixels: Counter[int] = Counter()
        self.images: Counter[int] = Counter()
        self.read = self.missed = 0
        self.reduced = False
        self._lock = Lock()

    def add(self, labels: np.ndarray) -> list[int]:
        """Count a label map; gives its labels."""
        if labels.dtype == np.uint8:
            counts = np.bincount(labels.ravel())
            values = np.flatnonzero(counts)
            counts = counts[values]
        else:
            values, counts = np.unique(labels, return_counts=True)
        found = values.tolist()
        with self._lock:
            self.pixels.update(dict(zip(found, counts.tolist(), strict=True)))
            self.images.update(found)
            self.read += 1
        return found

    def merge(self, others: Iterable["LabelCounts"]) -> "LabelCounts":
        """The counts of several together."""
        merged = LabelCounts()
        for one in (self, *others):
            merged.pixels.update(one.pixels)
            merged.images.update(one.images)
            merged.read, merged.missed = merged.read + one.read, merged.missed + one.missed
            merged.reduced |= one.reduced
        return merged

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_lock"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, _lock=Lock())

    def missing(self, rules: LabelRules) -> list[int]:
        """The classes without a pixel, if there are as many images as classes.

        Of fewer images than classes nobody expects all of them: 3 images of ADE20K hold some 30 of 150.
        """
        if self.read < rules.num_classes:
            return []
        return [label for label in rules.classes if not self.pixels[label]]

    def summary(self, names: Sequence[str]) -> str:
        """A table of what each class has: of all, or of the rarest."""
        total = sum(self.pixels.values()) or 1
        absent, shown = classes_shown([self.pixels[label] for label in range(len(names))])
        others = sorted(label for label in self.pixels if not 0 <= label < len(names))
        rows = [
            (names[label] if 0 <= label < len(names) else "ignored", str(label), *self._row(label, total))
            for label in (*shown, *others)
        ]
        text = f"{self.read:,} label maps; {len(names) - len(absent):,} of {len(names):,} classes have pixels"
        if absent:
            text += f", {first_few((names[label] for label in absent), 5)} none"
        text += "" if len(shown) == len(names) else "; the rarest of the others"
        return f"{text}\n{table(('class', 'label', 'pixels', 'images'), rows)}"

    def _row(self, label: int, total: int) -> tuple[str, str]:
        return f"{100 * self.pixels[label] / total:.2f} %", f"{self.images[label]:,}"


def classes_shown(counts: Sequence[int]) -> tuple[list[int], list[int]]:
    """The classes that have nothing, and those that a table shows: all, or the rarest that have something.

    Args:
        counts: What each class has.
    """
    labels = sorted(range(len(counts)), key=lambda label: counts[label])
    absent = [label for label in labels if not counts[label]]
    return absent, sorted(labels) if len(labels) <= _MOST_ROWS else labels[len(absent) :][: _MOST_ROWS // 2]


def judge_training(counts: LabelCounts, rules: LabelRules, names: Sequence[str]) -> Iterator[str]:
    """Look at all label maps of training together.

    Args:
        counts: What was counted.
        rules: What the heads learn.
        names: The classes.

    Yields:
        What is only suspicious.

    Raises:
        DataError: There is nothing to learn, or a class is missing.
    """
    if not counts.read:
        return
    learned = [label for label in rules.classes if counts.pixels[label]]
    if len(learned) < 2:
        what = f"has the label {learned[0]} or is ignored" if learned else "is ignored"
        text = f"in all {counts.read:,} label maps that were read every pixel {what}: there is nothing to learn"
        if counts.missed or (learned and len(names) == 1 and rules.num_classes == 2):
            yield f"{text}; {_cure(counts, rules, names)}"
        else:
            raise DataError(f"{text}; {_cure(counts, rules, names)}")
        return
    # one output that says 0 or 1 may be called one class
    missing = [names[label] for label in counts.missing(rules) if label < len(names)]
    if missing:
        text = (
            f"in {counts.read:,} label maps no pixel is of the class{'es' * (len(missing) > 1)} "
            f"{first_few(missing, 8)}: expected some of each of {len(names)} classes"
        )
        cure = (
            "correct the classes, reduce_zero_label or the label maps; DataCheckHook(missing_classes=True) trains "
            "without them"
        )
        if counts.missed:
            yield f"{text}; DataCheckHook(time_limit=None) reads the other {counts.missed:,}, too"
        else:
            raise MissingClassesError(f"{text}; {cure}")


class MissingClassesError(DataError):
    """Classes have no pixel in all of the training data."""


def judge_scoring(counts: LabelCounts, rules: LabelRules, names: Sequence[str], trained: LabelCounts) -> Iterator[str]:
    """Look at all label maps of a validation or test together.

    Args:
        counts: What was counted.
        rules: What the metrics score.
        names: The classes.
        trained: What was counted in training; nothing if it was not looked at.

    Yields:
        What is only suspicious.

    Raises:
        DataError: There is nothing to score.
    """
    if not counts.read:
        return
    if not counts.missed and not any(counts.pixels[label] for label in rules.classes):
        raise DataError(
            f"in all {counts.read:,} label maps every pixel is ignored: there is nothing to score; "
            f"{_cure(counts, rules, names)}"
        )
    unscored = [names[i] for i in counts.missing(rules) if i < len(names) and trained.pixels[i]]
    if unscored:
        yield (
            f"in {counts.read:,} label maps no pixel is of the class{'es' * (len(unscored) > 1)} "
            f"{first_few(unscored, 8)}, which training has: {'their' if len(unscored) > 1 else 'its'} score will be "
            "nan, or 0"
        )


def _cure(counts: LabelCounts, rules: LabelRules, names: Sequence[str]) -> str:
    found = {label for label in counts.pixels if counts.pixels[label]}
    if counts.reduced:
        return (
            "reduce_zero_label=True takes the label 0 for ignored and 1 for the first class: set it to False where 0 "
            "is a class"
        )
    if found <= {0, 255} and 255 in found:
        return (
            "masks of 0 and 255 have to become label maps of 0 and 1, as 255 is ignored: convert copies of them by "
            f"{_CONVERT}"
        )
    return f"expected the labels {rules.classes[:1]} to {rules.classes[-1:]} for {first_few(names, 5)}"
