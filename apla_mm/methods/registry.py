"""Methods by their names, and by one text: ``lora:r=8,layers=qkv``."""

import ast
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from typing import Any

from .apla import APLA
from .lora import LoRA
from .own_parameters import WO, BitFit, Full, Head, Norm
from .tuning_method import TuningMethod

#: name -> class
METHODS: dict[str, type[TuningMethod]] = dict(
    full=Full, head=Head, norm=Norm, bitfit=BitFit, lora=LoRA, wo=WO, apla=APLA
)
_WORDS = {"True": True, "true": True, "False": False, "false": False, "None": None}  # none is text: blocks=none


def register_method(name: str, method: type[TuningMethod]) -> None:
    """Give a tuning method a name.

    Args:
        name: What configs call it.
        method: Its class; see :class:`TuningMethod`.

    Raises:
        ValueError: The name is taken by another class, or is none, or the class is no method.
    """
    if not name.isidentifier():
        raise ValueError(f"method name {name!r} must be one word")
    if METHODS.get(name, method) is not method:
        raise ValueError(f"a method '{name}' is there already: {METHODS[name].__qualname__}")
    METHODS[name] = _checked(method, name)


def read_method(given: Any) -> dict[str, Any]:
    """What a config or a command line says of a method, as ``dict(type='lora', r=8)``.

    Args:
        given: Such a dict, with a name or a class; or text, ``'head'``, ``'lora:r=8,layers=[qkv,proj]'``,
            ``'package.module.Class:arg=1'``; or such text cut at its commas.

    Returns:
        A new dict with ``type``.

    Raises:
        ValueError: It is none of these. Whether there is such a method is not looked at.
    """
    if isinstance(given, Mapping) and isinstance(kind := given.get("type"), str | type):
        return {**given, "type": kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"}
    if isinstance(given, list | tuple) and all(isinstance(part, str) for part in given):
        given = ",".join(given)
    if not isinstance(given, str) or not given.strip():
        raise ValueError(f"method={given!r} must be such as 'lora:r=8' or dict(type='lora', r=8); {_there_are()}")
    name, colon, text = given.strip().partition(":")
    arguments: dict[str, Any] = {}
    for part in _split(text):
        key, equals, value = part.partition("=")
        if not equals or not key.strip().isidentifier() or key.strip() in arguments or key.strip() == "type":
            raise ValueError(
                f"method={given!r}: '{part}' must be KEY=VALUE, each key once, as in 'lora:r=8,layers=qkv'"
            )
        arguments[key.strip()] = _value(value)
    if colon and not arguments:
        raise ValueError(f"method={given!r}: no argument follows the colon")
    return dict(type=name, **arguments)


def build_method(given: Any) -> TuningMethod:
    """The method that a config or a command line names.

    Args:
        given: As of :func:`read_method`.

    Raises:
        ValueError: There is no such method, or it takes no such argument; the message says what there is.
    """
    arguments = read_method(given)
    name = arguments.pop("type")
    method = _find(name)
    signature = inspect.signature(method)
    try:
        signature.bind(**arguments)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise ValueError(f"method '{name}': {error}; it takes {takes}") from error
    return method(**arguments)


def _find(name: str) -> type[TuningMethod]:
    if name in METHODS:
        return METHODS[name]
    module, dot, cls = name.rpartition(".")
    if not dot:
        raise ValueError(f"there is no method '{name}'; {_there_are()}")
    try:
        found = getattr(import_module(module), cls)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"method '{name}' cannot be imported: {error}; {_there_are()}") from error
    return _checked(found, name)


def _checked(method: Any, name: str) -> type[TuningMethod]:
    if not isinstance(method, type) or not all(callable(getattr(method, m, None)) for m in ("prepare", "merge")):
        raise ValueError(
            f"method '{name}' is {method!r}: it must be a class with prepare(backbone) and merge(backbone)"
        )
    return method


def _there_are() -> str:
    return f"there are {', '.join(METHODS)}, and 'package.module.Class' names one of your own"


def _split(text: str) -> Iterator[str]:
    """Parts between commas that are not in brackets."""
    if text.strip():
        yield from re.split(r",(?![^\[(]*[\])])", text)


def _value(text: str) -> Any:
    bare = text.strip()
    if bare[:1] in ("[", "(") and bare[-1:] in ("]", ")"):
        return [_value(part) for part in _split(bare[1:-1])]
    if bare in _WORDS:
        return _WORDS[bare]
    try:
        found = ast.literal_eval(bare)
    except (ValueError, SyntaxError):
        return bare
    return found if isinstance(found, int | float | str) else bare


def method_text(given: Any) -> str:
    """A method as it is typed after ``method=``; what :func:`read_method` reads."""
    arguments = read_method(given)
    name = arguments.pop("type")
    return ":".join([name, *([",".join(f"{k}={_text(v)}" for k, v in arguments.items())] if arguments else [])])


def _text(value: Any) -> str:
    listed = isinstance(value, Sequence) and not isinstance(value, str)
    return f"[{','.join(map(_text, value))}]" if listed else str(value)
