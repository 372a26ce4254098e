"""Docstrings as Markdown: an extension of Griffe, which reads the package's sources for the reference."""

import re
from typing import Any

import griffe

_ROLE = re.compile(r":\w+:`~?([^`]+)`")
_BLOCK = re.compile(r"::\n\n((?:    .*\n|\n)+?)(?=\S|\Z)", re.MULTILINE)


class Markdown(griffe.Extension):
    """Turns roles (``:func:`~.adapt```) into code, and code behind ``::`` into a fence."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite an object's docstring."""
        if obj.docstring is not None:
            obj.docstring.value = markdown(obj.docstring.value)


def markdown(text: str) -> str:
    """A docstring with reStructuredText's roles and code blocks as Markdown has them.

    Args:
        text: The docstring, without its indentation.
    """
    text = _ROLE.sub(lambda match: f"`{match[1].lstrip('.').rpartition('.')[2]}`", text).replace("``", "`")
    return _BLOCK.sub(lambda match: f"\n\n{match[1].rstrip()}\n\n", text + "\n").strip()
