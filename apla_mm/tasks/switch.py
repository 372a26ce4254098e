"""Blocks in which a model is a delta's task."""

import os
from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from weakref import WeakKeyDictionary, ref

from torch import Tensor, nn

from ..delta import Delta, load_delta
from ..delta.apply import check_delta
from ..method.wrappers import unwrapped
from ..text import listed
from .fitted import FittedDelta, part_of, put_heads
from .lock import exclusive

_fitted: WeakKeyDictionary[nn.Module, WeakKeyDictionary[Delta, FittedDelta]] = WeakKeyDictionary()
_files: WeakKeyDictionary[nn.Module, dict[str, tuple[object, Delta]]] = WeakKeyDictionary()


def task(
    model: nn.Module, delta: Delta | str | Path, *, check_base: bool = True, allow_nonfinite: bool = False
) -> AbstractContextManager[None]:
    """A block in which a model is a delta's task; behind it, also after an error, the model is what it was.

    What the delta has is put back to the bit.

    The delta is checked once for each model, which takes most of its time for the base; from then on a switch copies
    the channels and whole tensors of the delta in, and back out, and nothing else::

        with apla_mm.task(model, delta):
            y = model(x)

    Threads take turns: see :class:`TaskSwitch`, also for what must not be done meanwhile.

    Args:
        model: A plain, adapted or compiled model, or its DistributedDataParallel; it holds the delta's base.
        delta: The delta, or its file, which is read once, and again when it was written anew, and kept as long as the
            model.
        check_base: Whether to compare the base; see :func:`apla_mm.delta.apply_delta`.
        allow_nonfinite: Whether the delta may hold NaN and infinity.

    Returns:
        The block, for one ``with``.

    Raises:
        BaseMismatchError: The model is another base.
        DeltaError: Names, shapes or dtypes do not fit, or the file is not a whole and well formed delta.
        RuntimeError: A task of the model is on in this thread.
    """
    model = unwrapped(model)
    if not isinstance(delta, Delta):
        delta = _read_once(model, delta, allow_nonfinite)
    known = _fitted.setdefault(model, WeakKeyDictionary())
    found = known.get(delta)
    if found is None or found.is_stale(model) or (check_base and not found.checked):
        name = repr(delta.source or "a delta")
        with exclusive(model, f"adding task {name}"):
            found = known[delta] = FittedDelta(
                model, delta, name, check_base=check_base, allow_nonfinite=allow_nonfinite
            )
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

    The model has one lock, and a thread waits in front of a block until another has left its own. Run the base in a
    block as well, ``with switch(None)``, where others may switch. Tasks do not add up: a block in a block of the model
    is an error. A block may be left in another thread than the one that entered it. Coroutines of one thread do not
    wait for one another, it is an error too: do not await inside a block, or hold an ``asyncio.Lock`` around it.

    What must not be done: to hold blocks of two models that share modules at once (give them one switch, of what they
    share); to write to the model's weights inside a block (what the task has is put back behind it) or between blocks
    (``load_state_dict``, an optimizer's step; add the tasks again then); to write to a delta's tensors. Nothing watches
    for it: the base is compared when a task is added.

    Tasks are for inference. A graph made on one side of a block's edge fails in backward on the other, as after an
    optimizer's step; what ``recompute`` or checkpointing computes again is computed with the weights of that moment.
    Weights are copied, not exchanged: their addresses stay, as CUDA graphs need, but what holds constants of its own
    (exported, frozen by inductor) does not switch.

    Args:
        model: A plain, adapted or compiled model that holds the base. It may move to other devices between blocks.
        deltas: Tasks by name, to :meth:`add`.
        prefix: What the deltas' names have before the model's, such as ``'backbone.'``. The rest of a delta is no part
            of its task; see ``whole`` of :meth:`add`.
        check_base: Whether to compare the base; see :func:`apla_mm.delta.apply_delta`.
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
        self.model: nn.Module = unwrapped(model)
        self.prefix = prefix
        self.check_base = check_base
        self._added: dict[str, FittedDelta] = {}
        self._heads: dict[str, list[ref[Tensor]]] = {}
        for name, delta in deltas.items():
            self.add(name, delta)

    @property
    def names(self) -> list[str]:
        """The tasks' names."""
        return list(self._added)

    @property
    def nbytes(self) -> int:
        """Size of what is kept of the deltas, in bytes."""
        return sum(fitted.nbytes for fitted in self._added.values())

    def add(
        self,
        name: str,
        delta: Delta | str | Path,
        *,
        whole: nn.Module | None = None,
        allow_nonfinite: bool = False,
    ) -> None:
        """Check a delta and add its task, or replace the one of that name.

        Args:
            name: Of the task.
            delta: The delta, or its file.
            whole: The model that holds this one at ``prefix``. What the delta has besides this one's, such as heads,
                is put into it, once and for good; the base is compared as a whole.
            allow_nonfinite: Whether the delta may hold NaN and infinity.

        Raises:
            BaseMismatchError: The model is another base.
            DeltaError: Names, shapes or dtypes do not fit, or the file is not a whole and well formed delta.
            ValueError: ``whole`` does not hold the model there, or holds another task's heads.
            RuntimeError: A task of the model is on in this thread.
        """
        if not isinstance(delta, Delta):
            delta = load_delta(delta, allow_nonfinite=allow_nonfinite)
        part = part_of(delta, self.prefix)
        fit = dict(check_base=self.check_base, allow_nonfinite=allow_nonfinite)
        if whole is None:
            with exclusive(self.model, f"adding task {name!r}"):
                self._added[name] = FittedDelta(self.model, part, repr(name), **fit)
            return
        whole = unwrapped(whole)
        if dict(whole.named_modules(remove_duplicate=False)).get(self.prefix[:-1]) is not self.model:
            raise ValueError(f"whole= does not hold the switch's model as '{self.prefix[:-1]}'")
        with exclusive(self.model, f"adding task {name!r}"):
            check_delta(whole, delta, check_base=self.check_base)
            self._check_free(name, whole, delta)
            fitted = FittedDelta(self.model, part, repr(name), check_base=False, allow_nonfinite=allow_nonfinite)
            heads = put_heads(whole, delta, self.prefix)
        self._added[name] = fitted
        self._heads[name] = [ref(tensor) for tensor in heads.values()]

    def __call__(self, name: str | None) -> AbstractContextManager[None]:
        """A block in which the model is a task; None for the base.

        Raises:
            KeyError: There is no such task.
        """
        if name is None:
            return exclusive(self.model, "the base")
        if name not in self._added:
            raise KeyError(f"there is no task {name!r}; there are {self.names}")
        return self._added[name].on(self.model)

    def _check_free(self, name: str, whole: nn.Module, delta: Delta) -> None:
        tensors = {**dict(whole.named_parameters()), **dict(whole.named_buffers())}
        written = {*delta.rows, *delta.tensors}
        for other, held in self._heads.items():
            ids = {id(tensor()) for tensor in held}
            both = [n for n in written & tensors.keys() if id(tensors[n]) in ids and not n.startswith(self.prefix)]
            if other != name and both:
                raise ValueError(
                    f"task {name!r}: {listed(both)} of whole= are those of task {other!r} already: give each task a "
                    "model of its own on the shared one, or switch all of it: TaskSwitch(whole, ...) or apla_mm.task"
                )


def _read_once(model: nn.Module, path: str | Path, allow_nonfinite: bool) -> Delta:
    """A file's delta, the same one until the file changes: tasks are known by it."""
    path = os.path.abspath(path)
    try:
        status = os.stat(path)
        state = status.st_ino, status.st_size, status.st_mtime_ns, allow_nonfinite
    except (OSError, ValueError):
        return load_delta(path)  # raises why not
    files = _files.setdefault(model, {})
    if path not in files or files[path][0] != state:
        files[path] = state, load_delta(path, allow_nonfinite=allow_nonfinite)
    return files[path][1]
