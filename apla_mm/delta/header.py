"""What a delta's file records beside its tensors."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from ..text import listed
from .digests import fingerprint
from .errors import DeltaError

VERSION = 1  #: of the format that is written, and the newest that is read
_DEEPEST = 64  #: lists and dicts in one another; JSON is written less deep than it is read
_PACKAGES = ("apla_mm", "torch", "timm", "mmengine", "mmcv", "mmseg", "mmdet", "mmpretrain")


def _versions() -> dict[str, str]:
    """Versions of those of the packages that are imported."""
    found = {name: getattr(sys.modules.get(name), "__version__", None) for name in _PACKAGES}
    return {name: str(version) for name, version in found.items() if version is not None}


@dataclass(frozen=True)
class Header:
    """What a delta's file records beside its tensors. Everything in it can be written as JSON, with at most 64 levels.

    Attributes:
        version: Of the format.
        base: SHA-256 of each of the base's tensors that did not train, by name; see :func:`~.digests.base_digests`.
        r: As given to ``adapt``.
        seed: As given to ``adapt``.
        selection: Whatever else chose what trains: blocks, lists of channels, patterns.
        config: The config's text.
        metrics: Of the evaluation.
        iteration: How many iterations were trained.
        versions: Of the packages that were imported when the delta was made.
        extra: Anything.
    """

    version: int = VERSION
    base: dict[str, str] = field(default_factory=dict)
    r: int | float | str | None = None
    seed: int | None = None
    selection: dict[str, Any] = field(default_factory=dict)
    config: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    iteration: int | None = None
    versions: dict[str, str] = field(default_factory=_versions)
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """The base's; see :func:`~.digests.fingerprint`."""
        return fingerprint(self.base)

    def check(self) -> None:
        """Check types, version and digests.

        Raises:
            DeltaError: A field is not what it must be.
        """
        if _is(self.version, int) and self.version > VERSION:
            raise DeltaError(
                f"it has version {self.version} of the format, and this apla_mm reads versions up to {VERSION}: "
                "install a newer apla_mm"
            )
        if not _is(self.version, int) or self.version < 1:
            raise DeltaError(f"the header's version must be an int from 1 to {VERSION}, not {_short(self.version)}")
        for name, types in _TYPES.items():
            value = getattr(self, name)
            if not _is(value, *types):
                raise DeltaError(f"the header's '{name}' must not be {_short(value)}")
            if _is_too_deep(value):
                raise DeltaError(f"the header's '{name}' has lists and dicts in one another, more than {_DEEPEST} deep")
        for name in ("base", "versions"):
            entries = getattr(self, name).items()
            if wrong := [str(key) for key, value in entries if not (_is(key, str) and _is(value, str))]:
                raise DeltaError(f"the header's '{name}' must map strings to strings; {listed(wrong)} do not")
        if wrong := [name for name, digest in self.base.items() if len(digest) != 64 or set(digest) - _HEX]:
            raise DeltaError(f"the header's digests of {listed(wrong)} are not SHA-256 in hexadecimal")

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Header":
        """The header of a file.

        Raises:
            DeltaError: A field is missing, unknown or not what it must be.
        """
        version = values.get("version", VERSION)
        names = {field.name for field in fields(cls)}
        newer = _is(version, int) and version > VERSION  # may have other fields, and is refused by its version
        if not newer and (wrong := set(values) ^ names):
            raise DeltaError(f"the header's fields {listed(wrong)} are missing or unknown")
        header = cls(**{name: value for name, value in values.items() if name in names})
        header.check()
        return header


_HEX = set("0123456789abcdef")
_TYPES: dict[str, tuple[type, ...]] = {
    "base": (dict,),
    "r": (int, float, str, type(None)),
    "seed": (int, type(None)),
    "selection": (dict,),
    "config": (str,),
    "metrics": (dict,),
    "iteration": (int, type(None)),
    "versions": (dict,),
    "extra": (dict,),
}


def _is(value: Any, *types: type) -> bool:
    return isinstance(value, types) and not isinstance(value, bool)


def _is_too_deep(value: Any) -> bool:
    level = [value]
    for _ in range(_DEEPEST):
        inner = (
            one.values() if isinstance(one, dict) else one for one in level if isinstance(one, dict | list | tuple)
        )
        # each once, be it in many places
        level = list({id(one): one for several in inner for one in several}.values())
    return any(isinstance(one, dict | list | tuple) for one in level)


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (RecursionError, ValueError):  # nested too deep; an int of too many digits
        text = "..."
    return f"a {type(value).__name__} ({text[:40]})"
