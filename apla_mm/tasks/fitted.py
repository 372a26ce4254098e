"""Deltas that are known to fit a model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from weakref import ref

import torch
from torch import Tensor, nn

from ..delta import Delta, DeltaError
from ..delta.apply import Write, below, check_delta, named_tensors, put, writes_of
from ..method import PartialLinear
from ..text import listed
from .lock import exclusive


@dataclass
class _Part:
    """What a task puts into one tensor of a model: all of it, or some rows.

    Attributes:
        path: Names of the modules on the way to the tensor.
        owner: The last of these modules, which has it; not kept alive.
        name: The tensor's name in it.
        shape: The whole tensor's.
        chosen: The rows, int64 (r,); None for all.
        value: What they become.
    """

    path: tuple[str, ...]
    owner: "ref[nn.Module]"
    name: str
    shape: torch.Size
    chosen: Tensor | None
    value: Tensor

    def tensor(self, model: nn.Module) -> Tensor | None:
        """The whole tensor, if it is there as it was; value and rows follow it to its device."""
        owner: nn.Module | None = model
        for name in self.path:
            owner = None if owner is None else owner._modules.get(name)
        if owner is None or owner is not self.owner():
            return None
        found: Tensor | None = owner._parameters.get(self.name)
        if found is None:
            found = owner._buffers.get(self.name)
        if found is None or found.dtype != self.value.dtype or found.shape != self.shape:
            return None
        if self.value.device != found.device:
            self.value = self.value.to(found.device)
            self.chosen = None if self.chosen is None else self.chosen.to(found.device)
        return found


class FittedDelta:
    """A delta that is known to fit a model. It keeps none of the model's modules alive.

    Args:
        model: The model, which holds the base.
        delta: The delta.
        name: The task's, for messages.
        check_base: Whether to compare the base.
        allow_nonfinite: Whether the delta may hold NaN and infinity.

    Raises:
        BaseMismatchError: The model is another base.
        DeltaError: Names, shapes or dtypes do not fit.
    """

    def __init__(self, model: nn.Module, delta: Delta, name: str, *, check_base: bool, allow_nonfinite: bool) -> None:
        try:
            delta.check(allow_nonfinite=allow_nonfinite)
            if any(module.trained.leads for module in model.modules() if isinstance(module, PartialLinear)):
                raise DeltaError("the model was made ready for FullyShardedDataParallel; switch a copy")
        except DeltaError as error:
            raise DeltaError(f"task {name}: {error}") from error
        check_delta(model, delta, check_base=check_base)
        self.name = name
        self.nbytes = delta.nbytes
        self.checked = check_base
        self._names = [*delta.rows, *delta.tensors]
        self._parts = []
        for tensor, value in {**delta.rows, **delta.tensors}.items():
            *path, last = tensor.split(".")
            owner = model.get_submodule(".".join(path))
            shape = getattr(owner, last).shape
            self._parts.append(_Part(tuple(path), ref(owner), last, shape, delta.channels_of(tensor), value))

    def is_stale(self, model: nn.Module) -> bool:
        """Whether it does not fit its model any more."""
        return any(part.tensor(model) is None for part in self._parts)

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """A block in which the model has the delta on; behind it all that the delta has is what it was."""
        with exclusive(model, f"task {self.name}"):
            tensors = self._tensors(model)
            owners = dict.fromkeys(part.owner() for part in self._parts)
            layers = [layer for layer in owners if isinstance(layer, PartialLinear)]
            for layer in layers:
                layer.sync()
            parts = list(zip(tensors, self._parts, strict=True))
            before: list[Write] = [(t, p.chosen, _copy(t, p.chosen)) for t, p in parts]
            try:
                _put([(t, p.chosen, p.value) for t, p in parts], layers)
                yield
            finally:
                try:
                    _put(before, layers)
                except BaseException:  # Ctrl-C
                    _put(before, layers)
                    raise

    def _tensors(self, model: nn.Module) -> list[Tensor]:
        found = [part.tensor(model) for part in self._parts]
        if missing := [name for name, tensor in zip(self._names, found, strict=True) if tensor is None]:
            raise DeltaError(
                f"task {self.name}: {listed(missing)} in the model were replaced since it was added, or have another "
                "dtype or shape: add it again"
            )
        return [tensor for tensor in found if tensor is not None]


@torch.no_grad()
def _put(writes: list[Write], layers: Sequence[PartialLinear]) -> None:
    put(writes, layers)


@torch.no_grad()
def _copy(tensor: Tensor, chosen: Tensor | None) -> Tensor:
    return tensor.clone() if chosen is None else tensor.index_select(0, chosen)


def part_of(delta: Delta, prefix: str) -> Delta:
    """The part of a delta whose names begin so, without that beginning.

    Raises:
        DeltaError: There is none.
    """
    part = replace(
        delta,
        channels=below(prefix, delta.channels),
        rows=below(prefix, delta.rows),
        tensors=below(prefix, delta.tensors),
        header=replace(delta.header, base=below(prefix, delta.header.base)),
    )
    if not part.names:
        raise DeltaError(
            f"delta '{delta.source}' has nothing below prefix='{prefix}': its names look like {listed(delta.names, 3)}"
        )
    return part


@torch.no_grad()
def put_heads(whole: nn.Module, delta: Delta, prefix: str) -> dict[str, Tensor]:
    """Write what a delta has besides the part below a prefix into a model, once and for good.

    Args:
        whole: A model that the delta is known to fit.
        delta: The delta.
        prefix: What is left alone.

    Returns:
        The model's tensors that were written to.
    """
    tensors = named_tensors(whole)
    writes = writes_of(delta, tensors, lambda name: not name.startswith(prefix))
    put(writes.values(), [module for module in whole.modules() if isinstance(module, PartialLinear)])
    return {name: tensors[name] for name in writes}
