"""What adapting a model did."""

import json
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from .channels.trained import channels_of


@dataclass(frozen=True)
class AdaptedProjection:
    """One adapted projection: its name inside the adapted model, its size, and the output channels that train."""

    name: str
    out_features: int
    in_features: int
    channels: tuple[int, ...]


@dataclass(frozen=True)
class Report:
    """What :func:`~.adapt.adapt` did.

    Attributes:
        arguments: Of :func:`~.adapt.adapt`: r, seed, channels, blocks, trainable, recompute, and selection, attentions
            and frozen_dtype where they were given.
        projections: The adapted projections, in the model's order.
        trained: Parameters that train, in the projections and elsewhere.
        total: Parameters of the plain model.
        replaced: Names of the attentions that a fused one now computes for, since theirs keeps N x N matrices.
        held: Names of the frozen weights that are held in ``frozen_dtype``.
    """

    arguments: dict[str, Any] = field(compare=False)
    projections: tuple[AdaptedProjection, ...]
    trained: int
    total: int
    replaced: tuple[str, ...] = field(default=(), compare=False)
    held: tuple[str, ...] = field(default=(), compare=False)

    def save_channels(self, path: str | Path) -> None:
        """Write the channels as JSON, to be read again as ``adapt(model, channels=path)``."""
        lists = {p.name: list(p.channels) for p in self.projections}
        Path(path).write_text(json.dumps(lists, indent=1) + "\n")

    def with_channels_of(self, part: nn.Module) -> "Report":
        """The report with the channels that train now in ``part``, which is the adapted model or holds it alone."""
        now = channels_of(part)
        places = {p.name: [n for n in now if f".{n}".endswith(f".{p.name}")] for p in self.projections}
        changed = (
            replace(p, channels=tuple(now[places[p.name][0]])) if places[p.name] else p for p in self.projections
        )
        return replace(self, projections=tuple(changed))

    def __str__(self) -> str:
        r = sorted({len(p.channels) for p in self.projections})
        channels = "no" if not r else str(r[0]) if len(r) == 1 else f"{r[0]} to {r[-1]}"
        where = f"in each of {len(self.projections)} projections" if r else "in any projection"
        share = f"{self.trained:,} of {self.total:,} parameters train ({self.trained / self.total:.2%})"
        fused = f"; {len(self.replaced)} attentions replaced by fused ones" if self.replaced else ""
        dtype = self.arguments.get("frozen_dtype")
        held = f"; {len(self.held)} frozen weights held in {dtype}" if dtype else ""
        return f"APLA: {channels} channels train {where}; {share}{fused}{held}"
