"""What is typed after --cfg-options, as values and back.

A path or a name is taken as it is typed::

    data_root=/d/my data (1)            '/d/my data (1)'
    load_from=None                      None
    classes=cell (live),cell - dead,1   ['cell (live)', 'cell - dead', '1']
    classes=["a, b","c"]                ['a, b', 'c']

Other values are read as mmengine's DictAction reads them, but for text in them, which stays as it is typed::

    a.b=3    a.b=1e-4    a.b=True    a.b=1,2    a.b=[(1,2),(3,4)]    a.b=traffic light
"""

import ast
import contextlib
import json
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: keys whose value is a path or a name: the last step that is no number, in lower case
_TEXT = re.compile(
    r"(?:.+_)?(?:root|dir|path|folder|file|filename|prefix|suffix|name|checkpoint|pretrained|title|project|url|uri)"
    r"|load_from|id|entity|notes"
)
#: keys whose value is a list of names
_NAMES = {"classes", "thing_classes", "stuff_classes", "class_names"}
_WORDS = {"true": True, "false": False}
_BRACKETS = {"(": ")", "[": "]"}


def parse_value(key: str, text: str) -> Any:
    """Read what was typed for a key.

    Args:
        key: The dotted key.
        text: What follows its equals sign.

    Returns:
        Text as it was typed where the key is that of a path or a name, but for None, and for True and False of
        ``pretrained``; names, split at commas, where it is that of classes; else what mmengine's DictAction gives, with
        text in it as it was typed.
    """
    if is_names(key):
        names = _parse_names(text)
        # of a data set's metainfo, text is a file that lists the names, and what is no file would count as letters
        return [names] if isinstance(names, str) and "." in key and not Path(names).is_file() else names
    if is_text(key):
        words = {**_WORDS, "none": None} if _last(key) == "pretrained" else {"none": None}
        return words.get(text.lower(), text) if text in ("None", "True", "False", "true", "false") else text
    return _parse(text)


def is_names(key: str) -> bool:
    """Whether a key's value is a list of names."""
    return _last(key) in _NAMES


def is_text(key: str) -> bool:
    """Whether a key's value is a path or a name."""
    return "data_prefix" in key.split(".") or _TEXT.fullmatch(_last(key).lower()) is not None


def value_text(key: str, value: Any) -> str:
    """What to type for a key to get a value.

    Raises:
        ValueError: Nothing that is typed gives this value.
    """
    for text in _spellings(value):
        if "\0" not in text and same(parse_value(key, text), value):
            return text
    raise ValueError(f"{key}={value!r} cannot be given by an option")


def pasted(options: Mapping[str, Any]) -> str:
    """The options as they are pasted into a shell: --cfg-options with each of them, quoted where it has to be."""
    return " ".join(["--cfg-options", *(shlex.quote(f"{key}={value_text(key, v)}") for key, v in options.items())])


def same(one: Any, other: Any) -> bool:
    """Whether two values are equal and of the same types, apart from lists and tuples where one has text alone."""
    if isinstance(one, list | tuple) and isinstance(other, list | tuple):
        alike = type(one) is type(other) or all(isinstance(part, str) for part in one)
        return alike and len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and (one == other or (one != one and other != other))


def _last(key: str) -> str:
    """The last step of a dotted key that is no number."""
    return next((step for step in reversed(key.split(".")) if not step.isdecimal()), "")


def _parse_names(text: str) -> str | list[str]:
    literals = list(_literals(text))
    whole = next((literal for literal in literals if isinstance(literal, str)), None)
    if whole is not None:
        text, literals = whole, list(_literals(whole))
    for found in (*_literals(f"[{text}]"), *literals):
        if isinstance(found, list | tuple) and found and all(isinstance(name, str) for name in found):
            return list(found)
    inner = _inside(text)
    # (live) is a name, as (1) is a number in Python
    if inner is not None and (text[0] == "[" or len(list(_split(inner))) > 1):
        return [part.strip() for part in _split(inner)]
    names = text.split(",")
    if len(names) > 1 and not names[-1]:
        names.pop()
    if len(names) > 1 and all(name.startswith(" ") for name in names[1:]):
        names[1:] = [name[1:] for name in names[1:]]  # "cat, dog" is a list as it is written in prose
    return text if len(names) == 1 and "," not in text else names


def _literals(text: str) -> Iterator[Any]:
    """What a text is in JSON, and in Python."""
    for read in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError), warnings.catch_warnings():
            warnings.simplefilter("error", SyntaxWarning)  # a backslash that stands for itself: text, then
            yield read(text)


def _parse(text: str) -> Any:
    """As mmengine's DictAction does, with text as it was typed."""
    bare = text.strip()
    while len(bare) > 1 and bare[0] == bare[-1] and bare[0] in "'\"" and bare[0] not in bare[1:-1]:
        bare = bare[1:-1].strip()
        text = bare
    inner = _inside(bare)
    if inner is not None:
        parts = [_parse_part(part) for part in _split(inner)]
        return tuple(parts) if bare[0] == "(" else parts
    parts = list(_split(bare))
    return [_parse_part(part) for part in parts] if parts and (len(parts) > 1 or "," in bare[-1:]) else _scalar(text)


def _parse_part(text: str) -> Any:
    """One of several values; in quotes it is text."""
    text = text.strip()
    if len(text) > 1 and text[0] in "'\"":
        for literal in _literals(text):
            if isinstance(literal, str):
                return literal
    return _parse(text)


def _scalar(text: str) -> Any:
    bare = text.strip()
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(bare)
    if bare.lower() in _WORDS:
        return _WORDS[bare.lower()]
    return None if bare == "None" else text


def _inside(text: str) -> str | None:
    """What is between the brackets around a whole text; None if there are none."""
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return None
    depths = list(_depths(text))
    return text[1:-1] if depths[-1] == 0 and all(depth > 0 for depth in depths[:-1]) else None


def _split(text: str) -> Iterator[str]:
    """The parts between commas, but for commas inside brackets or quotes; what follows the last one if it is empty."""
    start = 0
    depths = list(_depths(text))
    if depths and (depths[-1] != 0 or min(depths) < 0):  # brackets that are part of names
        depths = [0] * len(text)
    for i, sign in enumerate(text):
        if sign == "," and depths[i] == 0:
            yield text[start:i]
            start = i + 1
    if text[start:].strip():
        yield text[start:]


def _depths(text: str) -> Iterator[int]:
    """After each sign, how many brackets are open; a quoted part counts as one."""
    depth, quote, begins = 0, "", True
    for i, sign in enumerate(text):
        if quote:
            if sign == quote and re.match(r"\s*(?:[,)\]]|$)", text[i + 1 :]):
                quote, depth = "", depth - 1
        elif begins and sign in "'\"" and re.search(re.escape(sign) + r"\s*(?:[,)\]]|$)", text[i + 1 :]):
            quote, depth = sign, depth + 1
        elif sign in "([":
            depth += 1
        elif sign in ")]":
            depth -= 1
        begins = (begins and sign.isspace()) or (sign in ",([" and not quote)
        yield depth


def _spellings(value: Any) -> Iterator[str]:
    """Ways to write a value, the plainest first."""
    if isinstance(value, str):
        yield value
        yield json.dumps([value], ensure_ascii=False)
    elif isinstance(value, list | tuple):
        if all(isinstance(part, str) for part in value):
            yield ",".join(value)
            yield json.dumps(list(value), ensure_ascii=False)
        opening = "(" if isinstance(value, tuple) else "["
        yield opening + ",".join(_part_text(part) for part in value) + _BRACKETS[opening]
    else:
        yield repr(value)


def _part_text(value: Any) -> str:
    if isinstance(value, list | tuple):
        opening = "(" if isinstance(value, tuple) else "["
        return opening + ",".join(map(_part_text, value)) + _BRACKETS[opening]
    if isinstance(value, str):
        return value if same(_parse_part(value), value) and not set(",()[]'\"") & set(value) else json.dumps(value)
    return repr(value)
