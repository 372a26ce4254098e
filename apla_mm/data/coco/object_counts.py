"""How many objects and images of detection data each class has."""

from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np

from ...text import first_few, table
from ..labels.label_counts import classes_shown
from .file import CocoFile


class ObjectCounts:
    """Objects and images for each class of the annotation files that were read.

    Attributes:
        objects: Class -> how many objects that are learned from, or scored.
        images: Class -> how many images that have some.
        read: How many images the data sets take.
    """

    def __init__(self) -> None:
        self.objects: Counter[str] = Counter()
        self.images: Counter[str] = Counter()
        self.read = 0

    def add(self, file: CocoFile, objects: np.ndarray, taken: np.ndarray) -> None:
        """Count the objects of a file.

        Args:
            file: The file.
            objects: Whether each annotation is an object of the classes.
            taken: Whether the data set takes each image.
        """
        counted = objects & taken[file.image]
        categories = file.category[counted]
        seen = np.zeros((len(file.names), len(file.images)), dtype=bool)
        seen[categories, file.image[counted]] = True
        for counter, counts in (
            (self.objects, np.bincount(categories, minlength=len(file.names))),
            (self.images, seen.sum(axis=1)),
        ):
            counter.update({name: n for name, n in zip(file.names, counts.tolist(), strict=True) if n})
        self.read += int(taken.sum())

    def summary(self, classes: Sequence[str]) -> str:
        """A table of what each class has: of all, or of the rarest."""
        absent, shown = classes_shown([self.objects[name] for name in classes])
        text = f"{self.read:,} images; {len(classes) - len(absent):,} of {len(classes):,} classes have objects"
        if absent:
            text += f", {first_few((classes[label] for label in absent), 5)} none"
        text += "" if len(shown) == len(classes) else "; the rarest of the others"
        rows = [
            (classes[label], str(label), f"{self.objects[classes[label]]:,}", f"{self.images[classes[label]]:,}")
            for label in shown
        ]
        return f"{text}\n{table(('class', 'label', 'objects', 'images'), rows)}"

    def suspicions(self, classes: Sequence[str]) -> Iterator[str]:
        """What is suspicious of data to train on: classes without an object, if there are as many images as classes."""
        missing = [name for name in classes if not self.objects[name]]
        # of fewer images than classes nobody expects all of them
        if missing and self.read >= len(classes):
            several = len(missing) > 1
            yield (
                f"in {self.read:,} images no object is of the class{'es' * several} {first_few(missing, 8)}: expected "
                f"some of each of {len(classes)} classes; nothing learns to find {'them' if several else 'it'}: "
                "correct the classes or the annotations"
            )


def taken_images(kept: np.ndarray, indices: int | Sequence[int] | None) -> np.ndarray:
    """Whether a data set takes each image.

    Args:
        kept: Whether its filter keeps each image.
        indices: Which of these it takes, as in mmengine's data sets.
    """
    if indices is None:
        return kept
    places = np.flatnonzero(kept)
    if isinstance(indices, int):
        chosen = places[:indices] if indices >= 0 else places[indices:]
    else:
        chosen = places[[i for i in indices if -len(places) <= i < len(places)]]  # others mmengine refuses
    taken = np.zeros_like(kept)
    taken[chosen] = True
    return taken
