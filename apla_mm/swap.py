"""One base in memory, and several tasks' deltas that take turns on it."""

import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn

from .checkpoint import Delta, DeltaError, apply_delta, load_delta
from .checkpoint.errors import listed
from .method import PartialLinear

_T = TypeVar("_T")


def task(model: nn.Module, delta: Delta, *, check_base: bool = True) -> AbstractContextManager[None]:
    """A block in which a model is a delta's task; behind it, also after an error, the model is to the bit what it was.

    The delta is checked once for each model, which takes most of its time for the base; from then on a switch copies
    the channels and whole tensors of the delta in, and back out, and nothing else::

        with apla_mm.task(model, delta):
            y = model(x)

    Threads take turns: see :class:`TaskSwitch`, also for what else holds.

    Args:
        model: A plain, adapted or compiled model, which holds the delta's base.
        delta: The delta.
        check_base: Whether to compare the base; see :func:`~.checkpoint.apply_delta`.

    Returns:
        The block, for one ``with``.

    Raises:
        BaseMismatchError: The model is another base.
        DeltaError: Names, shapes or dtypes do not fit.
        RuntimeError: A task of the model is on in this thread.
    """
    model = _unwrapped(model)
    known = _tasks.setdefault(model, WeakKeyDictionary())
    found = known.get(delta)
    if found is None or found.is_stale(model) or (check_base and not found.checked):
        found = known[delta] = _register(model, delta, repr(delta.source or "a delta"), check_base)
    return found.on(model)


class TaskSwitch:
    """A model, or the backbone that several models share, and the tasks that it takes turns in.

    Two models that hold one backbone, each with its own heads::

        detector.backbone = segmentor.backbone
        switch = TaskSwitch(segmentor.backbone, prefix="backbone.")
        switch.add("segment", "seg.safetensors", whole=segmentor)
        switch.add("detect", "det.safetensors", whole=detector)
        with switch("segment"):
            segmentor.test_step(data)

    Blocks of models that share any module exclude one another: a thread waits until another has left its block. Run
    the base in a block as well, ``with switch(None)``, where others may switch. Tasks do not add up: a block in a block
    of the same weights is an error. Who nests blocks of models that share nothing does so in one order, or threads may
    wait for each other.

    Tasks are for inference. A graph made on one side of a block's edge fails in backward on the other, as after an
    optimizer's step; what ``recompute`` or checkpointing computes again is computed with the weights of that moment.
    Weights are copied, not exchanged: their addresses stay, as CUDA graphs need, but what holds constants of its own
    (exported, frozen by inductor) does not switch.

    Args:
        model: A plain, adapted or compiled model that holds the base. It may move to other devices later.
        deltas: Tasks by name, to :meth:`add`.
        prefix: What the deltas' names have before the model's, such as ``'backbone.'``. The rest of a delta is no part
            of its task; see ``whole`` of :meth:`add`.
        check_base: Whether to compare the base; see :func:`~.checkpoint.apply_delta`.
    """

    def __init__(
        self,
        model: nn.Module,
        deltas: Mapping[str, Delta | str | Path] = MappingProxyType({}),
        *,
        prefix: str = "",
        check_base: bool = True,
    ) -> None:
        if prefix and not prefix.endswith("."):
            raise ValueError(f"prefix='{prefix}' must end in a dot")
        self.model = _unwrapped(model)
        self.prefix = prefix
        self.check_base = check_base
        self._added: dict[str, _Task] = {}
        for name, delta in deltas.items():
            self.add(name, delta)

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return list(self._added)

    def add(self, name: str, delta: Delta | str | Path, *, whole: nn.Module | None = None) -> None:
        """Check a delta and add its task, or replace the one of that name.

        Args:
            name: Of the task.
            delta: The delta, or its file.
            whole: The model that holds this one at ``prefix``. What the delta has besides this one's, such as heads,
                is put into it, once and for good; the base is compared as a whole.

        Raises:
            BaseMismatchError: The model is another base.
            DeltaError: Names, shapes or dtypes do not fit, or the file is not a whole and well formed delta.
            ValueError: ``whole`` does not hold the model there.
            RuntimeError: A task of the model is on in this thread.
        """
        if not isinstance(delta, Delta):
            delta = load_delta(delta)
        if whole is not None:
            whole = _unwrapped(whole)
            if dict(whole.named_modules(remove_duplicate=False)).get(self.prefix[:-1]) is not self.model:
                raise ValueError(f"whole= does not hold the switch's model as '{self.prefix[:-1]}'")
        self._added[name] = _register(self.model, delta, repr(name), self.check_base, self.prefix, whole)

    def __call__(self, name: str | None) -> AbstractContextManager[None]:
        """A block in which the model is a task; None for the base.

        Raises:
            KeyError: There is no such task.
        """
        if name is None:
            return _exclusive(_guards_of(self.model), "the base")
        if name not in self._added:
            raise KeyError(f"there is no task {name!r}; there are {self.names}")
        return self._added[name].on(self.model)


class _Guard:
    """Of weights that one block at a time may have."""

    _numbers = count()

    def __init__(self) -> None:
        self.number = next(self._numbers)
        self.lock = threading.RLock()
        self.inside: str | None = None


_tasks: WeakKeyDictionary[nn.Module, WeakKeyDictionary[Delta, "_Task"]] = WeakKeyDictionary()
_guards: WeakKeyDictionary[nn.Module, _Guard] = WeakKeyDictionary()
_guarding = threading.Lock()


def _guards_of(model: nn.Module) -> list[_Guard]:
    """The guards of a model's modules, in the order to take them in; those that have none get one."""
    modules = list(model.modules())
    with _guarding:
        found = {guard for module in modules if (guard := _guards.get(module)) is not None}
        guards = sorted(found, key=lambda guard: guard.number) or [_Guard()]
        for module in modules:
            _guards.setdefault(module, guards[0])
    return guards


@contextmanager
def _exclusive(guards: Sequence[_Guard], what: str) -> Iterator[None]:
    with ExitStack() as locks:
        for guard in guards:
            locks.enter_context(guard.lock)
        for guard in guards:
            if guard.inside is not None:
                raise RuntimeError(f"{what}: this thread is in the block of {guard.inside} already; leave that first")
        try:
            for guard in guards:
                guard.inside = what
            yield
        finally:
            for guard in guards:
                guard.inside = None


@dataclass
class _Place:
    """A tensor of a model, by the modules on the way to it, and what the task has there."""

    path: tuple[str, ...]
    name: str
    owner: "ref[nn.Module]"
    chosen: Tensor | None
    value: Tensor

    def __str__(self) -> str:
        return ".".join((*self.path, self.name))


_Write = tuple[Tensor, Tensor | None, Tensor]


class _Task:
    """A delta that is known to fit a model. It holds none of the model's modules."""

    def __init__(self, model: nn.Module, delta: Delta, name: str, checked: bool) -> None:
        self.name = name
        self.checked = checked
        self.guards = _guards_of(model)
        self.places = []
        for full_name, value in (*delta.rows.items(), *delta.tensors.items()):
            path, _, key = full_name.rpartition(".")
            chosen = delta.channels[path] if full_name in delta.rows else None
            self.places.append(_Place(_split(path), key, ref(model.get_submodule(path)), chosen, value))
        written = {tensor.data_ptr() for tensor, _, _ in self._writes(model)}
        self.layers: list[tuple[tuple[str, ...], ref[nn.Module]]] = [
            (_split(path), ref(layer))
            for path, layer in model.named_modules()
            if isinstance(layer, PartialLinear)
            and any(tensor is not None and tensor.data_ptr() in written for tensor in (layer.weight, layer.bias))
        ]

    def is_stale(self, model: nn.Module) -> bool:
        """Whether modules were replaced since."""
        owners = ((place.path, place.owner) for place in self.places)
        return any(_find(model, path) is not owner() for path, owner in (*owners, *self.layers))

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        with _exclusive(self.guards, f"task {self.name}"):
            if self.is_stale(model):
                raise DeltaError(
                    f"task {self.name}: modules of the model were replaced since it was added, as adapt and merge do: "
                    "add it again"
                )
            layers = [layer for _, ref_ in self.layers if isinstance(layer := ref_(), PartialLinear)]
            for layer in layers:
                layer.sync()
            writes = self._writes(model)
            before = [_part_of(full, chosen) for full, chosen, _ in writes]
            trained = _trained(layers)
            try:
                _put(writes, layers)
                held = [*writes, *_trained(layers)]
                versions, of_layers = _versions(self._tensors(model), layers)
                yield
                now, of_layers_now = _versions(self._tensors(model), layers)
                moved = now != versions or (of_layers_now != of_layers and _differ(held, layers))
            finally:
                # looked up again: a buffer that moves to another device becomes another tensor
                back = trained + [
                    (full, place.chosen, value)
                    for full, place, value in zip(self._tensors(model), self.places, before, strict=True)
                    if full is not None
                ]
                try:
                    _put(back, layers)
                except BaseException:  # Ctrl-C
                    _put(back, layers)
                    raise
            if moved:
                raise RuntimeError(
                    f"weights of task {self.name} were written to or replaced inside its block, as by an optimizer, "
                    "a norm in training mode or load_state_dict, and that is lost: to train on from a delta, put it "
                    "on a model by apply_delta"
                )

    def _tensors(self, model: nn.Module) -> Iterator[Tensor | None]:
        for place in self.places:
            owner = _find(model, place.path)
            if owner is None:
                yield None
            else:
                found = owner._parameters.get(place.name)
                yield owner._buffers.get(place.name) if found is None else found

    def _writes(self, model: nn.Module) -> list[_Write]:
        writes: list[_Write] = []
        for full, place in zip(self._tensors(model), self.places, strict=True):
            if full is None or full.dtype != place.value.dtype or full.shape[1:] != place.value.shape[1:]:
                raise DeltaError(
                    f"task {self.name}: '{place}' of the model is gone, or has another shape or dtype than when the "
                    "task was added: add it again"
                )
            if place.value.device != full.device:
                place.value = place.value.to(full.device)
                place.chosen = None if place.chosen is None else place.chosen.to(full.device)
            writes.append((full, place.chosen, place.value))
        return writes


def _register(
    model: nn.Module, delta: Delta, name: str, check_base: bool, prefix: str = "", whole: nn.Module | None = None
) -> _Task:
    """Check a delta by putting it on; what it has of the model is taken off again."""
    part = _below(prefix, delta)
    target, applied, prefix = (model, part, "") if whole is None else (whole, delta, prefix)
    with _exclusive(_guards_of(target), f"adding task {name}"):
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
        return _Task(model, part, name, check_base)


def _below(prefix: str, delta: Delta) -> Delta:
    """The part of a delta whose names begin so, without that beginning."""

    def below(names: Mapping[str, _T]) -> dict[str, _T]:
        return {name[len(prefix) :]: value for name, value in names.items() if name.startswith(prefix)}

    part = replace(
        delta,
        channels=below(delta.channels),
        rows=below(delta.rows),
        tensors=below(delta.tensors),
        header=replace(delta.header, base=below(delta.header.base)),
    )
    if not part.names:
        raise DeltaError(
            f"delta '{delta.source}' has nothing below prefix='{prefix}': its names look like {listed(delta.names, 3)}"
        )
    return part


def _unwrapped(model: nn.Module) -> nn.Module:
    """What ``torch.compile`` was given."""
    while isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def _split(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _find(model: nn.Module, path: tuple[str, ...]) -> nn.Module | None:
    """``get_submodule`` in a tenth of its time; None if it is not there."""
    module: nn.Module | None = model
    for part in path:
        if module is None:
            break
        module = module._modules.get(part)
    return module


def _part_of(full: Tensor, chosen: Tensor | None) -> Tensor:
    full = full.detach()
    return full.clone() if chosen is None else full.index_select(0, chosen)


@torch.no_grad()
def _put(writes: Sequence[_Write], layers: Sequence[PartialLinear]) -> None:
    for full, chosen, value in writes:  # not by `.data`: autograd shall know
        if chosen is None:
            full.copy_(value)
        else:
            full.index_copy_(0, chosen.to(full.device), value.to(full))
    for layer in layers:
        layer.trained.adopt(layer.weight, layer.bias)


def _trained(layers: Sequence[PartialLinear]) -> list[_Write]:
    """The rows that train in adapted layers, which a delta of other channels does not have."""
    fulls = ((full, layer.trained.channels) for layer in layers for full in (layer.weight, layer.bias))
    return [(full, channels, _part_of(full, channels)) for full, channels in fulls if full is not None]


def _versions(tensors: Iterable[Tensor | None], layers: Sequence[PartialLinear]) -> tuple[list[int], list[int]]:
    """How often tensors were written to, and those of adapted layers: a compiled one writes to them in each forward."""
    own = [tensor for layer in layers for tensor in (*layer._parameters.values(), *layer.trained.parameters())]
    names = {id(tensor) for tensor in own}
    others = [tensor for tensor in tensors if id(tensor) not in names]
    plain, of_layers = ([t._version for t in g if t is not None and not t.is_inference()] for g in (others, own))
    return plain, of_layers


def _differ(writes: Sequence[_Write], layers: Sequence[PartialLinear]) -> bool:
    for layer in layers:
        layer.sync()
    own = {id(tensor) for layer in layers for tensor in layer._parameters.values()}
    return any(
        not torch.equal(_part_of(full, chosen).view(torch.uint8), value.contiguous().view(torch.uint8))
        for full, chosen, value in writes
        if id(full) in own
    )
