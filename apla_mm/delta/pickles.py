"""Pickled checkpoints of strangers, read without running anything in them.

``torch.load(weights_only=True)`` makes objects of known types alone, and refuses a file for a single other one, be it
a path among its settings. Here the other types' names are replaced by inert classes: tensors and plain values are
read, and what is unknown is kept as data that does nothing.
"""

import argparse
import datetime
import pickle
import re
import threading
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import torch

from ..text import printable

_PLAIN_TYPES = (bool, complex, dict, float, frozenset, int, list, range, set, slice, str, tuple)
_UNKNOWN = re.compile(r"Unsupported global: GLOBAL (\S+) ")
_BLOCKED = re.compile(r"unsupported GLOBAL (\S+) whose module")
_NO_DICT = re.compile(r"Can only SETITEMS? for dict, .* but got <class '[^']*\.(Inert_\w+)'>", re.DOTALL)
_NO_LIST = re.compile(r"Can only (?:append to|extend) lists, but got <class '[^']*\.(Inert_\w+)'>")
_MOST = 200  #: unknown types; each is found by reading the file again
_alone = threading.RLock()  # what torch may make is one set for all threads


class Inert:
    """What is read of an object whose type is not known: its arguments and its state, as data.

    Attributes:
        type_name: The type's full name.
        arguments: What it would have been made with.
        state: What it would have been given then.
    """

    type_name = ""
    state: Any = None

    def __new__(cls, *arguments: Any) -> Any:
        made = super().__new__(cls)
        made.arguments = arguments
        return made

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def __repr__(self) -> str:
        return f"<{self.type_name}, not made>"


class _AsDict:
    """Makes a plain dict in place of one of a derived class: torch fills no other."""

    def __new__(cls, *arguments: Any) -> Any:
        return OrderedDict(*(a for a in arguments[:1] if isinstance(a, dict)))


class _AsList:
    """Makes a list in place of what has elements, such as a deque."""

    def __new__(cls, *arguments: Any) -> Any:
        return list(*(a for a in arguments[:1] if isinstance(a, list | tuple)))


class _AsDatetime(Inert):
    """Makes a datetime, unless its time zone is of an unknown type."""

    type_name = "datetime.datetime"

    def __new__(cls, *arguments: Any) -> Any:
        try:
            return datetime.datetime(*arguments)
        except (TypeError, ValueError):
            return super().__new__(cls, *arguments)


class _Attribute(Inert):
    type_name = "builtins.getattr"


_READ_AS: dict[str, Any] = {
    "argparse.Namespace": argparse.Namespace,
    "collections.defaultdict": _AsDict,
    "collections.deque": _AsList,
    "mmengine.config.config.ConfigDict": _AsDict,
    "datetime.date": datetime.date,
    "datetime.datetime": _AsDatetime,
    "datetime.timedelta": datetime.timedelta,
    "datetime.timezone": datetime.timezone,
    "pathlib.PosixPath": PurePosixPath,
    "pathlib.PurePosixPath": PurePosixPath,
    "pathlib.WindowsPath": PureWindowsPath,
    "pathlib.PureWindowsPath": PureWindowsPath,
    **{f"builtins.{one.__name__}": one for one in _PLAIN_TYPES},
}


def read_pickle(path: str | Path, map_location: Any = "cpu", known: Sequence[Any] = ()) -> Any:
    """Read a checkpoint that was pickled by torch. Nothing in it is run.

    Args:
        path: The file.
        map_location: As of ``torch.load``.
        known: Further types that it may hold, as of ``torch.serialization.add_safe_globals``.

    Returns:
        What it holds: tensors and plain values; classes derived from dict as ``OrderedDict``, others as
        :class:`Inert`.

    Raises:
        ValueError: It is no such file, or damaged.
    """
    read_as = dict(_READ_AS)
    if not any(isinstance(one, tuple) and one[1] == "builtins.getattr" for one in known):
        read_as["builtins.getattr"] = _getattr_among(read_as)
    load = partial(torch.load, path, map_location=map_location, weights_only=True)
    for attempt in range(_MOST):
        allowed = [*((one, name) for name, one in read_as.items()), *known]
        try:
            with _allowed(allowed):
                if attempt and zipfile.is_zipfile(path):
                    load(mmap=True)  # looks at the objects alone, for what else is unknown
                return load()
        except Exception as error:  # a damaged pickle fails in any way
            if not _learn(read_as, str(error)):
                raise ValueError(f"'{path}' cannot be read: {_reason(error)}") from error
    raise ValueError(f"'{path}' cannot be read: it holds objects of more than {_MOST} unknown types")


@contextmanager
def _allowed(types: list[Any]) -> Iterator[None]:
    """Torch's ``safe_globals``, but for these alone; those of others are back behind the block."""
    with _alone:
        before = torch.serialization.get_safe_globals()
        try:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(types)
            yield
        finally:
            torch.serialization.clear_safe_globals()
            torch.serialization.add_safe_globals(before)


def _getattr_among(read_as: dict[str, Any]) -> Callable[[Any, Any], Any]:
    """Replaces ``getattr``, by which pickles name classes inside of others: these are unknown types as well."""

    def attribute(owner: Any, name: Any) -> Any:
        if not isinstance(owner, type):
            return _Attribute(owner, name)
        full = f"{getattr(owner, 'type_name', owner.__name__)}.{name}"
        if full not in read_as:
            raise pickle.UnpicklingError(f"Unsupported global: GLOBAL {full} was not an allowed global by default")
        return read_as[full]

    return attribute


def _learn(read_as: dict[str, Any], complaint: str) -> bool:
    """Take from torch's complaint as what another type must be read; gives whether it says so."""
    if found := _UNKNOWN.search(complaint):
        name = found.group(1) if "." in found.group(1) else f"builtins.{found.group(1)}"
        if name in read_as:
            return False
        cls = f"Inert_{len(read_as)}"
        read_as[name] = type(cls, (Inert,), {"type_name": name})
        return True
    for pattern, other in ((_NO_DICT, _AsDict), (_NO_LIST, _AsList)):
        if found := pattern.search(complaint):
            name = next(name for name, one in read_as.items() if one.__name__ == found.group(1))
            # a class of its own: torch looks up what it may make by the class
            read_as[name] = type(other.__name__, (other,), {})
            return True
    return False


def _reason(error: Exception) -> str:
    if found := _BLOCKED.search(str(error)):
        return f"it would run '{printable(found.group(1))}', as no checkpoint does: do not trust it"
    _, _, told = str(error).partition("WeightsUnpickler error:")
    lines = [line.strip() for line in (told or str(error)).splitlines() if line.strip()]
    reason = printable(lines[0] if lines else type(error).__name__)
    return reason if told else f"{reason}: it is damaged, or no checkpoint of torch: copy or download it again"
