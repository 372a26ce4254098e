"""Which attentions of a model are adapted."""

from collections.abc import Sequence

from .projections import Projection


def choose_blocks(projections: list[Projection], blocks: str | int | Sequence[int]) -> list[Projection]:
    """The projections that ``blocks`` means.

    Args:
        projections: All of a model, in its order.
        blocks: ``'all'``, ``'none'``, the last k (an int), or a list of positions.

    Returns:
        Those of them, in the model's order.

    Raises:
        ValueError: ``blocks`` is none of these.
    """
    count = len(projections)
    if blocks == "all":
        return projections
    if blocks == "none":
        return []
    if isinstance(blocks, int) and not isinstance(blocks, bool) and 1 <= blocks <= count:
        return projections[-blocks:]
    if isinstance(blocks, Sequence) and not isinstance(blocks, str):
        chosen = list(blocks)
        if chosen and len(set(chosen)) == len(chosen) and all(type(b) is int and 0 <= b < count for b in chosen):
            return [projections[b] for b in sorted(chosen)]
    raise ValueError(
        f"blocks={blocks!r} does not fit a model with {count} attentions: use 'all', 'none', the last k "
        f"(1 to {count}), or a list of distinct positions from 0 to {count - 1}"
    )
