"""Arguments of adapting, of that alone in a backbone which its outputs depend on."""

from collections.abc import Container, Iterable, Sequence
from fnmatch import fnmatchcase

from ...method.blocks import choose_blocks
from ...method.projections import Projection
from ...text import quoted

_IDLE = "which no output depends on: blocks behind the last of out_indices do not run, nor norms that no output passes"


def blocks_that_run(
    projections: list[Projection], used: Container[str], blocks: str | int | Sequence[int]
) -> str | list[int]:
    """What ``blocks`` means among the blocks that run.

    Args:
        projections: All of the backbone, in its order.
        used: Names of the parameters that the outputs depend on.
        blocks: As of :func:`apla_mm.adapt`; the last k are counted from the last one that runs.

    Returns:
        Their positions among all projections, or ``'none'``.

    Raises:
        ValueError: It means none of them, or lists one that does not run.
    """
    running = {i: p for i, p in enumerate(projections) if f"{p.name}.weight" in used}
    if isinstance(blocks, str | int):
        chosen = {p.name for p in choose_blocks(list(running.values()), blocks)}
        return [i for i, p in running.items() if p.name in chosen] or "none"
    choose_blocks(projections, blocks)  # positions there are
    if idle := [i for i in blocks if i not in running]:
        raise ValueError(f"blocks={list(blocks)} lists {idle}, {_IDLE}; blocks {list(running)} do")
    return list(blocks)


def trainable_that_runs(patterns: Iterable[str], names: Sequence[str], used: Container[str]) -> list[str]:
    """Patterns that match what the outputs depend on, and nothing else.

    Args:
        patterns: Of :func:`apla_mm.adapt`'s ``trainable``.
        names: Of all parameters of the backbone.
        used: Names of those that the outputs depend on.

    Returns:
        The patterns; one that matches others too is given as the names that count.

    Raises:
        ValueError: A pattern matches others alone.
    """
    found: list[str] = []
    for pattern in patterns:
        matched = [name for name in names if fnmatchcase(name, pattern)]
        running = [name for name in matched if name in used]
        if matched and not running:
            raise ValueError(f"trainable pattern '{pattern}' matches {quoted(matched, 3)}, {_IDLE}")
        found += [pattern] if len(running) == len(matched) else running
    return found
