"""What lies beside weights in checkpoints, as plain values: those of our own, and those of strangers."""

import argparse
import enum
from collections import Counter, OrderedDict, deque
from collections.abc import Iterator, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np
from torch import Tensor

from ..delta.pickles import Inert


def plain(value: Any) -> Any:
    """A value as readers of checkpoints take it, who make no objects of unknown types.

    Configs' dicts, others derived from dict and namespaces become dicts, named tuples tuples, other sequences and sets
    lists and sets, paths and texts of a class texts, enumerations their values. The rest stays: tensors, arrays,
    numbers, state dicts with their metadata.
    """
    if isinstance(value, Tensor | np.ndarray | np.generic) or hasattr(value, "_metadata"):
        return value
    if isinstance(value, enum.Enum):
        return plain(value.value)
    if isinstance(value, argparse.Namespace):
        return plain(vars(value))
    if isinstance(value, Mapping):
        made = {plain(key): plain(entry) for key, entry in value.items()}
        if type(value) is OrderedDict:
            return OrderedDict(made)
        return Counter(made) if type(value) is Counter else made
    if isinstance(value, list | deque):
        return [plain(entry) for entry in value]
    if isinstance(value, tuple):
        return tuple(plain(entry) for entry in value) if type(value).__module__ != "torch" else value
    for kind in (set, frozenset):
        if isinstance(value, kind):
            return kind(plain(entry) for entry in value)
    if isinstance(value, PurePath):
        return str(value)
    if isinstance(value, str) and type(value) is not str:
        return str.__str__(value)
    return value


def make_plain(checkpoint: dict[str, Any]) -> None:
    """Make what lies beside the weights in a checkpoint plain, in place."""
    for key, value in checkpoint.items():
        checkpoint[key] = plain(value)


def without_inert(value: Any, place: str = "") -> tuple[Any, list[str]]:
    """What was read of a checkpoint, less what is of an unknown type.

    Args:
        value: The checkpoint, or a part of it. Dicts and lists are changed in place.
        place: Where the part is.

    Returns:
        The same, and places and types of what was left out: keys of dicts are gone, entries of lists and tuples are
        None.
    """
    gone: list[str] = []
    return _without_inert(value, place, gone, set()), gone


def _without_inert(value: Any, place: str, gone: list[str], seen: set[int]) -> Any:
    if isinstance(value, Tensor) or id(value) in seen:
        return value
    if isinstance(value, dict | list | argparse.Namespace):
        seen.add(id(value))  # a pickle may hold itself
    if isinstance(value, argparse.Namespace):
        _clean(vars(value), place, gone, seen)
    elif isinstance(value, dict):
        _clean(value, place, gone, seen)
    elif isinstance(value, list):
        value[:] = _cleaned(value, place, gone, seen)
    elif type(value) is tuple:
        return tuple(_cleaned(value, place, gone, seen))
    elif isinstance(value, set | frozenset) and any(isinstance(entry, Inert) for entry in value):
        return type(value)(entry for entry in _cleaned(value, place, gone, seen) if entry is not None)
    return value


def _clean(entries: dict[Any, Any], place: str, gone: list[str], seen: set[int]) -> None:
    for key, entry in list(entries.items()):
        where = f"{place}.{key}" if place else str(key)
        if isinstance(key, Inert) or isinstance(entry, Inert):
            gone.append(f"{where} ({_types(key, entry)})")
            del entries[key]
        else:
            entries[key] = _without_inert(entry, where, gone, seen)


def _cleaned(entries: Any, place: str, gone: list[str], seen: set[int]) -> Iterator[Any]:
    for i, entry in enumerate(entries):
        where = f"{place}.{i}"
        if isinstance(entry, Inert):
            gone.append(f"{where} ({entry.type_name})")
            yield None
        else:
            yield _without_inert(entry, where, gone, seen)


def _types(*values: Any) -> str:
    return ", ".join(value.type_name for value in values if isinstance(value, Inert))
