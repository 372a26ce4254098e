"""What is wrong with a delta."""

from collections.abc import Collection
from typing import Any


class DeltaError(ValueError):
    """A delta, or the file that should be one, cannot be used; nothing was changed."""


class BaseMismatchError(DeltaError):
    """A delta was trained on another base than it is put on."""


def printable(text: Any) -> str:
    """Text out of a file, or an error that quotes one, without what a terminal would obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(text))


def listed(names: Collection[str], most: int = 8) -> str:
    """The first names, quoted and cut to a readable length, and how many more there are."""
    shown = (printable(name) for name in sorted(names)[:most])
    quoted = ", ".join(f"'{name}'" if len(name) <= 100 else f"'{name[:100]}...'" for name in shown)
    return quoted + (f" and {len(names) - most} more" if len(names) > most else "")
