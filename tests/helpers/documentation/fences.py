"""The code in a page: its commands, its Python and its configs, in order.

A comment of HTML before a fence says what a reader knows and a process does not::

    <!-- before: model = make_model() -->    Python that runs first
    <!-- arguments: CONFIG 64 -->            of a script
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from markdown_it import MarkdownIt

#: what a fence without a language begins with if it holds commands
PROGRAMS = ("apla-mm", "make", "pip", "python", "torchrun", "sbatch", "tools/")
_ASSIGNMENT = re.compile(r"[A-Z_]+=\S+ +")
#: what a config assigns, of which it has at least one
_CONFIG_KEYS = {"_base_", "custom_hooks", "custom_imports", "default_hooks", "model", "train_cfg"}


class Code(NamedTuple):
    """A command, a script, a file to be written, or a config.

    Attributes:
        place: PAGE:LINE.
        kind: 'command', 'script', 'file', 'config', or 'named', of a command within a sentence.
        text: It.
        argument: Of a script its arguments, of a file its name.
    """

    place: str
    kind: str
    text: str
    argument: str = ""


def code_in(path: Path, name: str) -> Iterator[Code]:
    """The code of a page.

    Args:
        path: A Markdown file.
        name: What it is called.

    Raises:
        SyntaxError: A fence of Python is none.
    """
    comment = ""
    for token in MarkdownIt().enable("table").parse(path.read_text()):
        place = f"{name}:{(token.map or [0])[0] + 1}"
        if token.type == "inline":
            codes = [child.content for child in token.children or () if child.type == "code_inline"]
            yield from (Code(place, "named", code) for code in codes if code.startswith("apla-mm "))
        if token.type == "html_block":
            comment += token.content
        elif token.type == "fence":
            yield from _of_fence(place, token.info.strip(), token.content, comment)
            comment = ""
        elif token.type in ("paragraph_open", "heading_open"):
            comment = ""


def _of_fence(place: str, language: str, text: str, comment: str) -> Iterator[Code]:
    first = _ASSIGNMENT.sub("", text.removeprefix("$ "))
    if language in ("bash", "console") or (not language and first.startswith(PROGRAMS)):
        for line in _logical_lines(text):
            yield Code(place, "command", line)
    elif language == "python":
        before = re.search(r"<!-- before:(.*?)-->", comment, re.DOTALL)
        arguments = re.search(r"<!-- arguments:(.*?)-->", comment)
        file = re.search(r"<code>(\w+\.py)</code>", comment)
        if file:
            yield Code(place, "file", text, file[1])
        elif _is_config(ast.parse(text, place)):
            yield Code(place, "config", text)
        else:
            text = f"{before[1].strip()}\n{text}" if before else text
            yield Code(place, "script", text, arguments[1].strip() if arguments else "")


def _logical_lines(text: str) -> Iterator[str]:
    """The commands of a fence: all of its lines, or those behind a ``$``, each with the lines that continue it."""
    prompted = text.startswith("$ ")
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip() and not line.startswith("#") and (line.startswith("$ ") or not prompted):
            yield line.removeprefix("$ ")


def _is_config(tree: ast.Module) -> bool:
    if not all(isinstance(node, ast.Assign) for node in tree.body):
        return False
    names = {target.id for node in tree.body for target in getattr(node, "targets", ()) if isinstance(target, ast.Name)}
    return bool(names & _CONFIG_KEYS)
