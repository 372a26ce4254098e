"""What parts of a model's tensors hold: to write it, to put it back, and to tell whether it changed."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from weakref import ref

import torch
from torch import Tensor, nn

from ..delta.apply import put
from ..method import PartialLinear
from .guards import Guard, guard_of


@dataclass
class Place:
    """A tensor of a model by the modules on the way to it, or some of its rows. It keeps none of the modules alive."""

    path: tuple[str, ...]
    name: str
    chosen: Tensor | None
    owner: "ref[nn.Module]"
    guard: Guard
    shape: torch.Size
    dtype: torch.dtype

    @classmethod
    def of(cls, model: nn.Module, full_name: str, chosen: Tensor | None) -> "Place":
        """The place of a tensor by its name in the state dict of a model that has guards."""
        path, _, name = full_name.rpartition(".")
        owner = model.get_submodule(path)
        tensor: Tensor = getattr(owner, name)
        parts = tuple(path.split(".")) if path else ()
        return cls(parts, name, chosen, ref(owner), guard_of(owner), tensor.shape, tensor.dtype)

    def __str__(self) -> str:
        return ".".join((*self.path, self.name))

    def held(self) -> Tensor | None:
        """The whole tensor that the module has there now, wherever the module is."""
        if (owner := self.owner()) is None:
            return None
        found = owner._parameters.get(self.name)
        return owner._buffers.get(self.name) if found is None else found

    def find(self, model: nn.Module) -> Tensor | None:
        """The whole tensor, if the module is still in the model and the tensor's shape and dtype are the same."""
        module: nn.Module | None = model
        for part in self.path:  # `get_submodule` in a tenth of its time
            if module is None:
                return None
            module = module._modules.get(part)
        tensor = self.held() if module is self.owner() else None
        fits = tensor is not None and tensor.dtype == self.dtype and tensor.shape == self.shape
        return tensor if fits else None


class Snapshot:
    """What places hold.

    Args:
        places: The places.
        tensors: Their tensors.
        layers: The adapted layers among their modules.
        values: What the first places hold, where that is known; what the rest holds is copied.
    """

    @torch.no_grad()
    def __init__(
        self,
        places: Sequence[Place],
        tensors: Sequence[Tensor],
        layers: Sequence[PartialLinear],
        values: Sequence[Tensor] = (),
    ) -> None:
        self.places = places
        self.tensors = tensors
        self.layers = layers
        unknown = list(zip(places, tensors, strict=True))[len(values) :]
        self.values = [*values, *(_part_of(tensor, place) for place, tensor in unknown)]
        adapted = [tensor for layer in layers for tensor in (*layer._parameters.values(), *layer.trained.parameters())]
        self.adapted = {id(tensor): tensor for tensor in adapted if tensor is not None}
        self.plain = [tensor for tensor in tensors if id(tensor) not in self.adapted]
        self.versions = self._versions()

    def restore(self) -> None:
        """Put it back. A tensor that has another shape now is left alone."""
        write(self.places, self.values, self.layers)

    def differs(self, model: nn.Module) -> bool:
        """Whether modules or tensors were replaced or written to since."""
        if any(place.find(model) is not tensor for place, tensor in zip(self.places, self.tensors, strict=True)):
            return True
        (plain, adapted), (plain_now, adapted_now) = self.versions, self._versions()
        # compiled, an adapted layer writes to its tensors in each forward
        return plain != plain_now or (adapted != adapted_now and self._values_differ())

    def _versions(self) -> tuple[list[int], list[int]]:
        return versions(self.plain), versions(self.adapted.values())

    @torch.no_grad()
    def _values_differ(self) -> bool:
        for layer in self.layers:
            layer.sync()
        return any(
            not torch.equal(_part_of(tensor, place).view(torch.uint8), value.contiguous().view(torch.uint8))
            for place, tensor, value in zip(self.places, self.tensors, self.values, strict=True)
            if id(tensor) in self.adapted
        )


def versions(tensors: Collection[Tensor]) -> list[int]:
    """How often tensors were written to; those of inference mode do not tell."""
    try:
        return [tensor._version for tensor in tensors]
    except RuntimeError:
        return [0 if tensor.is_inference() else tensor._version for tensor in tensors]


@torch.no_grad()
def write(places: Sequence[Place], values: Sequence[Tensor], layers: Sequence[PartialLinear]) -> None:
    """Write to places, and let what trains in adapted layers follow. A tensor of another shape is left alone."""
    writes: list[tuple[Tensor, Tensor | None, Tensor]] = []
    for place, value in zip(places, values, strict=True):
        tensor, chosen = place.held(), place.chosen  # not its `.data`: autograd shall know
        if tensor is None or tensor.shape != place.shape:
            continue
        if value.device != tensor.device or value.dtype != tensor.dtype:  # `to` takes longer to find out
            value, chosen = value.to(tensor), None if chosen is None else chosen.to(tensor.device)
        writes.append((tensor, chosen, value))
        place.guard.writes[id(tensor)] += 1
    put(writes, layers)


def _part_of(tensor: Tensor, place: Place) -> Tensor:
    return tensor.clone() if place.chosen is None else tensor.index_select(0, place.chosen)
