"""Which output channels of a projection train."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

ChannelLists = Mapping[str, Sequence[int]]


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
