"""Formulas: fences of the language ``math`` as MathML, which browsers draw without a script."""

from typing import Any

from latex2mathml.converter import convert


def formula(source: str, language: str, css_class: str, options: Any, md: Any, **_: Any) -> str:
    """What pymdownx.superfences puts in a fence's place.

    Args:
        source: LaTeX.
        language: ``'math'``.
        css_class: Of the element.
        options: Of the fence; there are none.
        md: The Markdown converter.
    """
    return f'<div class="{css_class}">{convert(source, display="block")}</div>'
