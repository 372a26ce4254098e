"""The weights that all tasks share, in memory once."""

from collections.abc import Mapping, Set
from pathlib import Path

import torch
from torch import Tensor, nn

from ..delta import BaseMismatchError, Delta, base_digests
from ..delta.base_file import BASE_FILE, base_name, find_base, load_base, named_as
from ..delta.digests import check_base
from ..text import listed


class Base:
    """A base in memory.

    Args:
        state: The state dict before training.
        device: Where its tensors are kept.

    Attributes:
        name: Of its file, by its tensors.
        tensors: Frozen parameters by name, for models to share.
    """

    def __init__(self, state: Mapping[str, Tensor], device: str) -> None:
        self.name = base_name(state)
        # clones: where a tensor lies in a file would decide about its alignment, and with it about rounding
        self.tensors = {
            name: nn.Parameter(tensor.to(device, copy=True), requires_grad=False) for name, tensor in state.items()
        }

    @classmethod
    def of_file(cls, path: Path, device: str) -> "Base":
        """Read a base file.

        Raises:
            DeltaError: It is damaged, or none.
        """
        return cls(load_base(path), device)

    @classmethod
    def of_delta(cls, delta: Delta, device: str) -> "Base":
        """Read the base file that a delta names.

        Raises:
            DeltaError: It names none, or it is not found or is damaged.
        """
        return cls.of_file(find_base(delta.header.extra.get(BASE_FILE, ""), Path(delta.source)), device)

    @property
    def nbytes(self) -> int:
        """Size of its tensors in bytes."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def below(self, delta: Delta) -> dict[str, Tensor]:
        """What a delta needs of the base, under the delta's names.

        Nothing may be switched in meanwhile.

        Raises:
            BaseMismatchError: The delta was trained on another base.
        """
        needed: Set[str] = delta.header.base.keys()
        tensors = dict(named_as(self.tensors, needed))
        other = delta.header.extra.get(BASE_FILE)
        cure = f"this server has '{self.name}': serve deltas of another base by a server of its own"
        if missing := needed - tensors.keys():
            raise BaseMismatchError(f"its base is '{other}', with {listed(missing, 3)}, and {cure}")
        found = {name: tensors[name] for name in sorted(needed)}
        try:
            with torch.no_grad():
                check_base(delta.header.base, base_digests(found, delta.channels))
        except BaseMismatchError as error:
            raise BaseMismatchError(f"its base is '{other}', and {cure} ({error})") from error
        return found
