"""What a rule finds, and how rules read a config."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from mmengine.config import Config

from ...option_values import pasted


@dataclass(frozen=True)
class Problem:
    """Settings that do not agree.

    Attributes:
        where: The dotted key of the setting.
        what: What it is, and what it does not agree with.
        cure: Options that mend it.
        hint: What else can be done, or how, where options alone cannot tell.
        error: Whether it cannot be meant; else it is only a warning.
    """

    where: str
    what: str
    cure: Mapping[str, Any] = field(default_factory=dict)
    hint: str = ""
    error: bool = True

    def __str__(self) -> str:
        told = f"{self.where}: {self.what}"
        cures = [pasted(self.cure)] if self.cure else []
        return "; ".join([told, *cures, *([self.hint] if self.hint else [])])


def find(cfg: Any, key: str, default: Any = None) -> Any:
    """What is at a dotted key of a config; the default where there is nothing, or None."""
    for step in key.split("."):
        if isinstance(cfg, list | tuple) and step.isdecimal() and int(step) < len(cfg):
            cfg = cfg[int(step)]
        elif isinstance(cfg, Mapping | Config) and cfg.get(step) is not None:
            cfg = cfg.get(step)
        else:
            return default
    return cfg


def parts(node: Any, path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """All dicts of a part of a config, with their dotted keys, outer ones first."""
    if isinstance(node, dict):
        yield path, node
    children = node.items() if isinstance(node, dict) else enumerate(node) if _is_list(node) else ()
    for key, child in children:
        yield from parts(child, f"{path}.{key}")


def as_list(value: Any) -> list[Any]:
    """A list's or tuple's items, a single value, or nothing for None."""
    return list(value) if _is_list(value) else [] if value is None else [value]


def keyed(cfg: Any, key: str) -> list[tuple[str, Any]]:
    """A setting that is one or a list of several, as pairs of a dotted key and a value."""
    value = find(cfg, key)
    return [(f"{key}.{i}", one) for i, one in enumerate(value)] if _is_list(value) else [(key, value)] if value else []


def kind(part: Any) -> str:
    """The name of the type of a part, without its scope."""
    return str(part.get("type", "")).rpartition(".")[-1] if isinstance(part, Mapping) else ""


def pair(value: Any) -> tuple[int, int] | None:
    """A size as (height, width); None if it is none."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value, value
    sides = as_list(value)
    return (sides[0], sides[1]) if len(sides) == 2 and all(isinstance(side, int) for side in sides) else None


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)
