"""What training changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..method.names import projection_of, tensors_of
from ..text import listed
from .errors import DeltaError
from .header import Header

_WEIGHTS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_DTYPES = (*_WEIGHTS, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
_LONGEST_NAME = 512


@dataclass(frozen=True, eq=False)
class Delta:
    """What training changed of a base: channels of projections, and whole tensors.

    Names are those of the trained model's state dict.

    Attributes:
        channels: Projection -> int64 (r,), its output channels that trained, ascending.
        rows: ``<projection>.weight`` -> (r, in), ``<projection>.bias`` -> (r,): these rows, trained.
        tensors: Name -> everything else that trained or moved, whole.
        header: What the file records beside its tensors.
        source: The file it comes from, for messages.
    """

    channels: dict[str, Tensor]
    rows: dict[str, Tensor]
    tensors: dict[str, Tensor]
    header: Header = field(default_factory=Header)
    source: str = ""

    @property
    def names(self) -> set[str]:
        """All names of the trained model's state dict: those of the delta and of the base it needs."""
        return {*self.rows, *self.tensors, *self.header.base}

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return sum(t.nbytes for group in (self.channels, self.rows, self.tensors) for t in group.values())

    def channels_of(self, name: str) -> Tensor | None:
        """Of a tensor in :attr:`rows` the channels that these rows are, int64 (r,); None of any other tensor."""
        projection = projection_of(name)
        return None if name not in self.rows or projection is None else self.channels[projection]

    def check(self, *, allow_nonfinite: bool = False) -> None:
        """Check that the parts are well formed and fit one another.

        Args:
            allow_nonfinite: Whether tensors may hold NaN and infinity.

        Raises:
            DeltaError: They are not; names what is wrong.
        """
        self.header.check()
        if not self.rows and not self.tensors:
            raise DeltaError("it is empty: nothing was trained")
        _check_names({*self.channels, *self.names})
        if both := self.rows.keys() & self.tensors.keys():
            raise DeltaError(f"{listed(both)} are there as rows and as whole tensors")
        for name, chosen in self.channels.items():
            self._check_channels(name, chosen)
        for name, rows in self.rows.items():
            self._check_rows(name, rows)
        if wrong := [f"{name} ({t.dtype})" for name, t in self.tensors.items() if t.dtype not in _DTYPES]:
            raise DeltaError(f"{listed(wrong)} have a dtype that a delta cannot hold")
        if wrong := [name for name, tensor in self.tensors.items() if _is_odd_bool(tensor)]:
            raise DeltaError(f"{listed(wrong)} are bool, and have bytes other than 0 and 1")
        if whole := self.tensors.keys() & self.header.base.keys():
            raise DeltaError(f"{listed(whole)} are whole in the delta and also belong to its base")
        if lacking := self.rows.keys() - self.header.base.keys():
            raise DeltaError(f"the header lacks the base's digest of {listed(lacking)}")
        needed = {tensor for name in self.channels for tensor in tensors_of(name, self.header.base)}
        if lacking := needed - self.rows.keys():
            raise DeltaError(f"the rows {listed(lacking)} are missing")
        if not allow_nonfinite:
            check_finite({**self.rows, **self.tensors})

    def _check_channels(self, name: str, chosen: Tensor) -> None:
        if chosen.dtype != torch.int64 or chosen.dim() != 1 or not len(chosen):
            raise DeltaError(
                f"the channels of '{name}' must be int64 of shape (r,), not {chosen.dtype} of {tuple(chosen.shape)}"
            )
        if chosen[0] < 0 or (chosen[1:] <= chosen[:-1]).any():
            raise DeltaError(f"the channels of '{name}' must be distinct, ascending and not negative")
        if f"{name}.weight" not in self.rows:
            raise DeltaError(f"there are channels of '{name}', but no rows '{name}.weight'")

    def _check_rows(self, name: str, rows: Tensor) -> None:
        projection = projection_of(name)
        if projection is None or projection not in self.channels:
            raise DeltaError(f"the rows '{name}' are not of the weight or bias of a projection with channels")
        if rows.dtype not in _WEIGHTS:
            raise DeltaError(f"the rows '{name}' must be of a floating dtype, not {rows.dtype}")
        r = len(self.channels[projection])
        weight = name.endswith("weight")
        if rows.dim() != (2 if weight else 1) or len(rows) != r:
            shape = f"({r}, in)" if weight else f"({r},)"
            raise DeltaError(f"the rows '{name}' must have the shape {shape}, not {tuple(rows.shape)}")


def check_finite(tensors: Mapping[str, Tensor]) -> None:
    """Refuse NaN and infinity.

    Raises:
        DeltaError: There is some; names the tensors.
    """
    if wrong := nonfinite(tensors):
        raise DeltaError(
            f"there is NaN or infinity in {listed(wrong)}: training has diverged, or the file is damaged; take an "
            "earlier one, or allow it by allow_nonfinite=True"
        )


def nonfinite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that hold NaN or infinity."""
    return [name for name, tensor in tensors.items() if not _is_finite(tensor)]


def _is_finite(tensor: Tensor) -> bool:
    if tensor.is_floating_point() and tensor.itemsize == 1:
        tensor = tensor.float()  # isfinite does not know all dtypes of eight bits
    return not (tensor.is_floating_point() or tensor.is_complex()) or bool(tensor.isfinite().all())


def _check_names(names: set[str]) -> None:
    # every part between dots is some module's name; so there is no '..' either
    wrong = [
        name
        for name in names
        if len(name) > _LONGEST_NAME or not name.isprintable() or {"/", "\\"} & set(name) or not all(name.split("."))
    ]
    if wrong:
        raise DeltaError(f"{listed(wrong)} are not names of tensors in a state dict")


def _is_odd_bool(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool and bool((tensor.view(torch.uint8) > 1).any())
