"""Which options of APLAHook are read, beside which others."""

from collections.abc import Mapping
from typing import Any

from ..method.channels.selection import Selection

#: with none of these the hook adapts nothing
_CHOOSING = ("r", "channels", "blocks")


def check_options(given: Mapping[str, Any]) -> bool:
    """Refuse options that nothing reads.

    Args:
        given: The options that are given, by name.

    Returns:
        Whether the hook adapts anything by them.

    Raises:
        ValueError: One is given that nothing reads.
    """
    adapts = any(name in given for name in _CHOOSING)
    if given and not adapts:
        raise ValueError(
            f"APLAHook: {', '.join(given)} given, and none of {', '.join(_CHOOSING)}: the hook adapts nothing then, "
            f"and nothing reads {'it' if len(given) == 1 else 'them'}. Add r, as in r=64 or r='full', or blocks='none' "
            "to train none of the projections; of a backbone that adapts itself, as APLAViT does, set it in "
            "apla=dict(...)"
        )
    for name, does in (("seed", "draws"), ("selection", "chooses")):
        if name in given and "channels" in given:
            raise ValueError(f"APLAHook: {name} {does} channels, and channels are listed: leave one of them out")
    if given.get("blocks") == "none" and (
        unread := [name for name in ("r", "seed", "selection", "channels") if name in given]
    ):
        raise ValueError(f"APLAHook: blocks='none' adapts no projection, and nothing reads {', '.join(unread)}")
    if "drop_path" in given and given.get("frozen_eval") is False:
        raise ValueError("APLAHook: drop_path is read with frozen_eval alone, which is False")
    try:
        Selection.of(given.get("selection", "random")).check_read(
            **{name: given.get(name) for name in ("r", "seed", "channels", "blocks")}
        )
    except ValueError as error:
        raise ValueError(f"APLAHook: {error}") from error
    return adapts
