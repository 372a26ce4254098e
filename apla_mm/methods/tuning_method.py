"""What a tuning method is."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import nn

from ..method import PartialLinear, merge
from .lora_linear import LoRALinear


@runtime_checkable
class TuningMethod(Protocol):
    """One way to fine-tune a backbone: what trains of it, and how it is computed. Heads are no part of it.

    What runs rely on:

    - ``state_dict()`` of a prepared backbone has the plain one's keys, shapes and dtypes and holds what the plain one
      would compute with; ``load_state_dict()`` takes it. So whatever is saved is plain.
    - What training changes are parameters. Those that the plain backbone has not are in the modules, or in children of
      the modules, beside whose weight they stand, and train by its settings of the optimizer.
    - What the backbone has frozen itself stays frozen.
    """

    def prepare(self, backbone: nn.Module) -> object:
        """Change a plain backbone in place, so that what shall train does.

        Raises:
            ValueError: The backbone cannot be trained so. It is as it was.
        """

    def merge(self, backbone: nn.Module) -> object:
        """Turn a prepared backbone into the plain one again, in place, with what was trained in its weights."""


@dataclass(frozen=True)
class Merged:
    """The part of a method that is the same for all whose modules are changed in place."""

    def merge(self, backbone: nn.Module) -> None:
        """Turn a prepared backbone into the plain one again; see :meth:`TuningMethod.merge`."""
        merge(backbone)


def check_plain(backbone: nn.Module) -> None:
    """Check that a backbone is not prepared yet.

    Raises:
        ValueError: It is.
    """
    if any(isinstance(module, PartialLinear | LoRALinear) for module in backbone.modules()):
        raise ValueError(f"{type(backbone).__name__} is prepared for training already: call apla_mm.merge(model) first")
