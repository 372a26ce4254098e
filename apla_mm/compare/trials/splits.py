"""Parts of a training set, drawn so that a smaller one lies within a larger one."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """Positions in a data set.

    Attributes:
        train: What is trained on, ascending.
        held_out: What a learning rate is chosen by, ascending.
    """

    train: tuple[int, ...]
    held_out: tuple[int, ...]


def draw_fraction(names: Sequence[str], fraction: float, seed: int) -> list[int]:
    """Draw a part of a data set at random, the same one wherever it is drawn.

    Each item gets the SHA-256 of (seed, name) as its lot, and the smallest lots win: a smaller fraction is part of a
    larger one, and what is drawn does not depend on the order of the items.

    Args:
        names: Of the items, such as file names; distinct.
        fraction: In (0, 1].
        seed: Any int.

    Returns:
        Positions, ascending; at least one.

    Raises:
        ValueError: The fraction is none, there is no item, or two have one name.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"fraction {fraction} of the training data: use a number above 0 and up to 1, such as 0.1")
    if not names:
        raise ValueError("the training set has no item to draw from")
    if len(set(names)) != len(names):
        raise ValueError("two items of the training set have one name: it is joined of several, or lists one twice")
    return sorted(_by_lots(names, range(len(names)), seed)[: max(1, round(fraction * len(names)))])


def hold_out(names: Sequence[str], chosen: Sequence[int], share: float, seed: int) -> Split:
    """Split what was drawn into a part to train on and one to choose a learning rate by.

    Args:
        names: Of all items.
        chosen: Positions of those that were drawn.
        share: Of them, how many are held out, in (0, 1).
        seed: Any int.

    Raises:
        ValueError: There are fewer than two.
    """
    if len(chosen) < 2:
        raise ValueError(f"{len(chosen)} training image cannot be split; take a larger fraction")
    count = min(len(chosen) - 1, max(1, round(share * len(chosen))))
    ordered = _by_lots(names, chosen, f"held out, {seed}")
    return Split(tuple(sorted(ordered[count:])), tuple(sorted(ordered[:count])))


def _by_lots(names: Sequence[str], positions: Sequence[int], seed: int | str) -> list[int]:
    return sorted(positions, key=lambda i: hashlib.sha256(f"{seed}:{names[i]}".encode()).digest())
