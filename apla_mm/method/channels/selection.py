"""Which output channels of a projection train."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

ChannelLists = Mapping[str, Sequence[int]]

_BLOCK = re.compile(r"block_(\d+)")
#: ways to choose channels, and how many batches of training data each reads unless told otherwise
_BATCHES = {"random": None, "magnitude": None, "gradient": 8, "fisher": 8}


@dataclass(frozen=True)
class Selection:
    """How channels are chosen: at random, or by a score of :mod:`~.scores`.

    Attributes:
        type: ``'random'``, ``'magnitude'``, ``'gradient'`` or ``'fisher'``.
        batches: How many batches of training data each process reads; None where none are read.
    """

    type: str
    batches: int | None = None

    @classmethod
    def of(cls, selection: str | Mapping[str, Any]) -> "Selection":
        """A selection by its name, or by ``dict(type=..., batches=...)``.

        Raises:
            ValueError: It is no such thing.
        """
        given = dict(selection) if isinstance(selection, Mapping) else dict(type=selection)
        kind, batches = given.get("type"), given.get("batches")
        if unknown := sorted(map(str, given.keys() - {"type", "batches"})):
            raise ValueError(f"selection={selection!r} has {', '.join(unknown)}, and takes type and batches alone")
        if not isinstance(kind, str) or kind not in _BATCHES:
            raise ValueError(f"selection={selection!r} must be one of {', '.join(map(repr, _BATCHES))}")
        if _BATCHES[kind] is None and "batches" in given:
            raise ValueError(f"selection={selection!r}: '{kind}' reads no data, leave batches out")
        if "batches" not in given:
            return cls(kind, _BATCHES[kind])
        if type(batches) is not int or batches < 1:
            raise ValueError(f"selection={selection!r}: batches must be an int, at least 1")
        return cls(kind, batches)

    @property
    def reads_data(self) -> bool:
        """Whether batches of training data are needed."""
        return self.batches is not None

    def as_argument(self) -> str | dict[str, Any]:
        """What :meth:`of` reads, in plain types."""
        return dict(type=self.type, batches=self.batches) if self.reads_data else self.type

    def check_read(self, *, r: Any, seed: Any, channels: Any, blocks: Any) -> None:
        """Refuse arguments beside which nothing reads this one, and those that nothing reads beside it.

        Raises:
            ValueError: There is such a one.
        """
        if self.type == "random":
            return
        chosen = f"selection='{self.type}'"
        if channels is not None:
            raise ValueError(f"{chosen} chooses channels, and channels are listed: leave one of them out")
        if seed is not None:
            raise ValueError(f"seed={seed} draws channels, and {chosen} scores them: leave one out, as by seed=None")
        if blocks == "none":
            raise ValueError(f"blocks='none' adapts no projection, and nothing reads {chosen}")
        if r is None or r == "full" or (isinstance(r, float) and r == 1):
            raise ValueError(
                f"{chosen} chooses r channels of each projection, and {'no r' if r is None else f'r={r!r}'} is given, "
                "which trains all: give fewer, as r=64, or leave selection out"
            )


def resolve_r(r: int | float | str, out_features: int, name: str) -> int:
    """Number of channels that ``r`` means for one projection.

    Args:
        r: ``'full'``, an int in [1, out_features], or a float in (0, 1], a fraction of ``out_features``.
        out_features: Output channels of the projection.
        name: The projection's name, for the error message.

    Returns:
        The number of channels, in [1, out_features].

    Raises:
        ValueError: ``r`` is none of these.
    """
    if r == "full":
        return out_features
    if isinstance(r, float) and 0 < r <= 1:
        return max(1, round(r * out_features))
    if isinstance(r, int) and not isinstance(r, bool) and 1 <= r <= out_features:
        return r
    raise ValueError(
        f"r={r!r} does not fit projection '{name}' with {out_features} output channels: "
        f"use 'full', an int from 1 to {out_features}, or a fraction such as 0.25"
    )


def random_channels(name: str, out_features: int, r: int, seed: int) -> list[int]:
    """Draw ``r`` channels at random, the same ones wherever and whenever they are drawn.

    Each channel gets the SHA-256 of (seed, name, channel) as its lot and the ``r`` smallest lots win. No random
    number generator is touched, so ranks, resumed runs and library versions agree; a smaller ``r`` draws a subset of
    a larger one.

    Args:
        name: The projection's name inside the adapted model.
        out_features: Output channels to choose from.
        r: How many to choose.
        seed: Any int.

    Returns:
        ``r`` distinct channels, ascending.
    """
    lots = sorted((hashlib.sha256(f"{seed}:{name}:{c}".encode()).digest(), c) for c in range(out_features))
    return sorted(c for _, c in lots[:r])


def top_channels(scores: Tensor, r: int, name: str) -> list[int]:
    """The ``r`` channels with the largest scores; of equal ones the first.

    Args:
        scores: (out,).
        r: How many to choose.
        name: The projection's name, for the error message.

    Returns:
        ``r`` distinct channels, ascending.

    Raises:
        ValueError: A score is not finite.
    """
    if not scores.isfinite().all():
        raise ValueError(f"projection '{name}' has channels whose score is not finite: its weights are NaN or infinite")
    return sorted(scores.sort(descending=True, stable=True).indices[:r].tolist())


def load_channels(channels: ChannelLists | str | Path) -> ChannelLists:
    """Channel lists as they are given, or from a JSON file ``{"blocks.0.attn.proj": [3, 17, ...], ...}``.

    Raises:
        FileNotFoundError: The file is missing.
        ValueError: The file is not a JSON object of lists.
    """
    if not isinstance(channels, str | Path):
        return channels
    path = Path(channels)
    if not path.is_file():
        raise FileNotFoundError(f"channels='{path}': no such file; write one with `Report.save_channels`")
    try:
        lists = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"channels='{path}' is not JSON: {error}") from error
    if not isinstance(lists, dict) or not all(isinstance(chosen, list) for chosen in lists.values()):
        raise ValueError(f"channels='{path}' must hold one object that maps projection names to lists of channels")
    return lists


def by_projection(lists: ChannelLists, names: Sequence[str]) -> ChannelLists:
    """Channel lists by the projections' names, where they are by the blocks' numbers.

    The files that the authors' code reads as ``inds_path`` are ``{"block_0": [415, 514, ...], ...}``. A block's number
    is that in its projection's name by which all projections differ.

    Args:
        lists: By names, which are given back as they are, or by numbers.
        names: The projections' names.

    Returns:
        Lists by names. Numbers that no projection has stay as they are.

    Raises:
        ValueError: The names do not tell which projection is of which block, as where each stage counts anew.
    """
    numbers = {key: int(found.group(1)) for key in lists if (found := _BLOCK.fullmatch(str(key)))}
    if not numbers or not numbers.keys().isdisjoint(names):
        return lists
    if others := sorted(lists.keys() - numbers.keys()):
        raise ValueError(
            f"channels are listed by the blocks' numbers, as '{min(numbers)}', and by other names, as '{others[0]}': "
            "use one of the two"
        )
    counts = [[int(step) for step in name.split(".") if step.isdecimal()] for name in names]
    columns = {column for column in zip(*counts, strict=False) if len(set(column)) == len(names)}
    if len({_without_numbers(name) for name in names}) != 1 or len(columns) != 1:
        raise ValueError(
            f"channels are listed by the blocks' numbers, as '{min(numbers)}', and the projections' names do not tell "
            f"which block each is of: {list(names)[:4]}; list the channels by these names"
        )
    of_block = dict(zip(columns.pop(), names, strict=True))
    if doubled := sorted(key for key in numbers if list(numbers.values()).count(numbers[key]) > 1):
        raise ValueError(f"the channels of one block are listed several times: {doubled}")
    return {of_block.get(numbers[key], key): chosen for key, chosen in lists.items()}


def _without_numbers(name: str) -> str:
    return ".".join("#" if step.isdecimal() else step for step in name.split("."))


def listed_channels(lists: ChannelLists, name: str, out_features: int) -> list[int]:
    """The channels that ``lists`` gives for one projection, checked.

    Returns:
        Distinct channels in [0, out_features), ascending.

    Raises:
        ValueError: The projection is not listed, or its channels are empty, doubled or out of range.
    """
    if name not in lists:
        raise ValueError(f"no channels are listed for projection '{name}'; listed are {sorted(lists)}")
    chosen = list(lists[name])
    wrong = [c for c in chosen if not isinstance(c, int) or isinstance(c, bool) or not 0 <= c < out_features]
    if wrong:
        raise ValueError(f"channels {wrong[:5]} of projection '{name}' are not ints in [0, {out_features})")
    if not chosen or len(set(chosen)) != len(chosen):
        raise ValueError(f"the channels of projection '{name}' must be at least one and distinct, got {chosen[:10]}")
    return sorted(chosen)
