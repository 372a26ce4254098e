"""Deltas that are known to fit a model."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from ..delta import BaseMismatchError, Delta, DeltaError, apply_delta, base_digests
from ..delta import check_base as compare_base
from ..delta.apply import below, named_tensors
from ..delta.errors import listed
from ..method import PartialLinear
from .base_watch import BaseWatch
from .guards import exclusive, guards_of
from .snapshot import Place, Snapshot, write


class FittedDelta:
    """A delta that is known to fit a model. It keeps none of the model's modules alive.

    Args:
        model: The model, which holds the base.
        delta: The delta.
        name: The task's, for messages.
        checked: Whether the base was compared, and is to be compared again when it may have changed.
    """

    def __init__(self, model: nn.Module, delta: Delta, name: str, checked: bool) -> None:
        self.name = name
        self.nbytes = delta.nbytes
        self.guards = guards_of(model)
        names = {**delta.rows, **delta.tensors}
        self.places = [
            Place.of(model, name, delta.channels[name.rpartition(".")[0]] if name in delta.rows else None)
            for name in names
        ]
        self.values = list(names.values())
        # in an adapted layer, rows that the delta does not have train too
        self.trained = [
            Place.of(model, f"{name}.{kind}", layer.trained.channels)
            for name, layer in model.named_modules(remove_duplicate=False)
            if isinstance(layer, PartialLinear) and {f"{name}.weight", f"{name}.bias"} & names.keys()
            for kind, tensor in layer._parameters.items()
            if tensor is not None
        ]
        self.base = (delta.header.base, delta.channels, set(delta.tensors))
        self.watch = BaseWatch(model, self.guards) if checked else None

    def is_stale(self, model: nn.Module) -> bool:
        """Whether it may not fit any more."""
        return any(place.find(model) is None for place in self.places)

    @contextmanager
    def on(self, model: nn.Module, check_base: bool) -> Iterator[None]:
        """A block in which the model has the delta on."""
        with exclusive(self.guards, f"task {self.name}"):
            places = [*self.places, *self.trained]
            tensors = self._found(model, places)
            layers = self._synced_layers()
            if check_base and self.watch is not None and not self.watch.is_unchanged():
                self._compare_base(model)
                self.watch = BaseWatch(model, self.guards)
            before = Snapshot(places, tensors, layers)
            try:
                write(self.places, self.values, layers)
                inside = Snapshot(places, tensors, layers, self.values)
                yield
                changed = inside.differs(model)
            finally:
                try:
                    before.restore()
                except BaseException:  # Ctrl-C
                    before.restore()
                    raise
            if changed:
                raise RuntimeError(
                    f"weights of task {self.name} were written to or replaced inside its block, as by an optimizer, "
                    "a norm in training mode or load_state_dict, and that is lost: to train on from a delta, put it "
                    "on a model by apply_delta"
                )

    def _found(self, model: nn.Module, places: Sequence[Place]) -> list[Tensor]:
        """The tensors of places; what is kept of the delta follows them to their devices."""
        tensors = [tensor for place in places if (tensor := place.find(model)) is not None]
        if len(tensors) < len(places):
            raise DeltaError(
                f"task {self.name}: {listed([str(place) for place in places if place.find(model) is None])} in the "
                "model were replaced since it was added, as adapt and merge do, or have another dtype: add it again"
            )
        for place, tensor in zip(places, tensors, strict=True):
            if place.chosen is not None and place.chosen.device != tensor.device:
                place.chosen = place.chosen.to(tensor.device)
        for i, (value, tensor) in enumerate(zip(self.values, tensors, strict=False)):
            if value.device != tensor.device:
                self.values[i] = value.to(tensor.device)
        return tensors

    def _synced_layers(self) -> list[PartialLinear]:
        """The adapted layers that the delta writes to."""
        owners = dict.fromkeys(place.owner() for place in self.trained)
        layers = [layer for layer in owners if isinstance(layer, PartialLinear)]
        for layer in layers:
            layer.sync()
        return layers

    def _compare_base(self, model: nn.Module) -> None:
        for module in model.modules():
            if isinstance(module, PartialLinear):
                module.sync()
        base, channels, whole = self.base
        try:
            compare_base(base, base_digests(named_tensors(model), channels, whole))
        except BaseMismatchError as error:
            raise BaseMismatchError(
                f"task {self.name}: weights of the model were written to or replaced since it was added: {error}"
            ) from error


def fit(
    model: nn.Module,
    delta: Delta,
    name: str,
    *,
    check_base: bool,
    allow_nonfinite: bool,
    prefix: str = "",
    whole: nn.Module | None = None,
) -> FittedDelta:
    """Check a delta by putting it on; what it has of the model is taken off again.

    Args:
        model: The model, which holds the base.
        delta: The delta.
        name: The task's, for messages.
        check_base: Whether to compare the base.
        allow_nonfinite: Whether the delta may hold NaN and infinity.
        prefix: What the delta's names have before the model's.
        whole: The model that holds this one at ``prefix``; what the delta has besides this one's stays in it.

    Raises:
        DeltaError: It does not fit.
        RuntimeError: A task of the model is on in this thread.
    """
    try:
        delta.check(allow_nonfinite=allow_nonfinite)
    except DeltaError as error:
        raise DeltaError(f"task {name}: {error}") from error
    part = _part(delta, prefix)
    target, applied, prefix = (model, part, "") if whole is None else (whole, delta, prefix)
    with exclusive(guards_of(target), f"adding task {name}"):
        layers = [module for module in target.modules() if isinstance(module, PartialLinear)]
        if any(layer.trained.leads for layer in layers):
            raise DeltaError(f"task {name}: the model was made ready for FullyShardedDataParallel; switch a copy")
        for layer in layers:
            layer.sync()
        tensors: dict[str, Tensor] = dict(target.named_parameters(remove_duplicate=False))
        tensors.update(target.named_buffers(remove_duplicate=False))
        names = [prefix + n for n in (*part.rows, *part.tensors)]
        before = [(tensors[n], tensors[n].detach().clone()) for n in names if n in tensors]
        try:
            apply_delta(target, applied, check_base=check_base)
        finally:
            for tensor, value in before:
                tensor.data.copy_(value)
            for layer in layers:
                layer.trained.adopt(layer.weight, layer.bias)
            torch.clear_autocast_cache()  # of casts of the heads that were there
        return FittedDelta(model, part, name, check_base)


def _part(delta: Delta, prefix: str) -> Delta:
    """The part of a delta whose names begin so, without that beginning."""
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
