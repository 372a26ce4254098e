"""Names and tables as text."""

from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST_NAME = 100
#: arguments that messages name, and what they are called on the tools' command lines
_OPTIONS = {"check_base=False": "--no-check", "allow_nonfinite=True": "--allow-nonfinite"}


def printable(text: Any) -> str:
    """Text out of a file, or an error that quotes one, without what a terminal would obey."""
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in str(text))


def said_by_tool(error: object) -> str:
    """An error's text for the terminal, naming the tools' options in place of arguments."""
    text = "\n".join(map(printable, str(error).splitlines()))
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def first_few(items: Iterable[Any], most: int = 8, separator: str = ", ") -> str:
    """The first items, and how many more there are."""
    items = list(items)
    shown = separator.join(map(str, items[:most]))
    return shown + (f"{' ' if separator == ', ' else separator}and {len(items) - most:,} more" * (len(items) > most))


def quoted(names: Iterable[Any], most: int = 8) -> str:
    """The first names in their order, each in quotes, and how many more there are."""
    return first_few((f"'{printable(name)}'" for name in names), most)


def listed(names: Iterable[Any], most: int = 8) -> str:
    """As :func:`quoted`, sorted, and cut to a readable length: for names that a file of strangers may hold."""
    cut = (name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..." for name in map(printable, names))
    return quoted(sorted(cut), most)


def format_bytes(size: float) -> str:
    """A size in bytes with a unit: KiB, MiB or GiB."""
    for unit, scale in (("GiB", 2**30), ("MiB", 2**20)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size / 2**10:.1f} KiB"


def table(head: Sequence[str], rows: Iterable[Sequence[str]], *, left: int = 1, markdown: bool = False) -> str:
    """A table with aligned columns.

    Args:
        head: Titles of the columns.
        rows: Cells, as many in each row.
        left: How many columns, the first, are aligned to the left; the others are to the right.
        markdown: With bars and a rule.

    Returns:
        Lines of text.
    """
    cells = [list(head), *map(list, rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]

    def line(row: Sequence[str]) -> list[str]:
        return [c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))]

    if not markdown:
        return "\n".join("  ".join(line(row)).rstrip() for row in cells)
    rule = ["-" * w if i < left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [line(cells[0]), rule, *map(line, cells[1:])])
