"""APLA as one of the methods."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..method import Report, adapt
from .tuning_method import Merged


@dataclass(frozen=True)
class APLA(Merged):
    """APLA (arXiv 2503.11335): ``r`` output channels of each attention's projection train.

    Runs take APLAHook for it, and APLAViT's ``apla``, which know further arguments; for these see
    :func:`apla_mm.adapt`. An argument that is None is not given.
    """

    r: int | float | str | None = None
    seed: int | None = None
    channels: Mapping[str, Sequence[int]] | str | None = None
    blocks: str | int | Sequence[int] | None = None
    trainable: Sequence[str] | None = None
    recompute: str | None = None
    attentions: Mapping[str, str | None] | None = None
    frozen_dtype: str | None = None
    selection: Any = None

    @property
    def arguments(self) -> dict[str, Any]:
        """Those of :func:`apla_mm.adapt` that are given."""
        return {name: value for name, value in vars(self).items() if value is not None}

    def prepare(self, backbone: nn.Module) -> Report:
        """Adapt the backbone; errors of :func:`apla_mm.adapt`."""
        return adapt(backbone, **self.arguments)
