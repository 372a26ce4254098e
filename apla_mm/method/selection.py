"""Which output channels of a projection train."""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

ChannelLists = Mapping[str, Sequence[int]]

_BLOCK = re.compile(r"block_(\d+)")


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
