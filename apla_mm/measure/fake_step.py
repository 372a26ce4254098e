"""A training step counted on fake tensors, which have shapes and no memory: for models that fit no machine at hand."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    UnsupportedFakeTensorException,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .step_cost import StepCost, TrainingStep, step_cost

_aten = torch.ops.aten
_NEEDS_VALUES = (DataDependentOutputException, DynamicOutputShapeException, UnsupportedFakeTensorException)


class PeakBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operators make, each storage once, for as long as they are alive.

    It works for real tensors too; those of the ``meta`` device have no memory. What a kernel takes and gives back
    before it returns is not seen, nor is what an allocator holds beyond the tensors.

    Attributes:
        live: Bytes alive now, of tensors made since it was entered.
        peak: The most there were at once since it was entered, or since :meth:`reset`.
    """

    def __init__(self) -> None:
        super().__init__()
        self._sizes: dict[int, int] = {}
        self.live = 0
        self.peak = 0

    def reset(self) -> None:
        """Start the peak from what is alive now."""
        self.peak = self.live

    def _watch(self, storage: torch.UntypedStorage) -> None:
        address = storage._cdata
        if address not in self._sizes:
            self._sizes[address] = storage.nbytes()
            self.live += self._sizes[address]
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._forget, address).atexit = False

    def _forget(self, address: int) -> None:
        self.live -= self._sizes.pop(address)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.device.type != "meta":
                self._watch(leaf.untyped_storage())
        return result


class _Values(TorchDispatchMode):
    """Answers what fake tensors cannot, where the answer does not change what is counted."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        real = bool(tensors) and not any(isinstance(tensor, FakeTensor) for tensor in tensors)
        # the rates of stochastic depth: constructors read them one by one
        if func is _aten.linspace.default or (real and func is not _aten.lift_fresh.default):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if func is _aten._local_scalar_dense.default:
            dtype = args[0].dtype
            return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1
        if func is _aten.nonzero.default:
            return _all_positions(args[0])
        if func is _aten.masked_select.default:
            return args[0].new_empty(torch.broadcast_shapes(args[0].shape, args[1].shape)).flatten()
        if func is _aten.index.Tensor:
            return func(args[0], _without_masks(args[1]))
        return func(*args, **kwargs)


def _all_positions(mask: Tensor) -> Tensor:
    return mask.new_empty((mask.numel(), mask.ndim), dtype=torch.int64)


def _without_masks(indices: list[Tensor | None]) -> list[Tensor | None]:
    found: list[Tensor | None] = []
    for index in indices:
        mask = index is not None and index.dtype in (torch.bool, torch.uint8)
        found += _all_positions(index).unbind(1) if mask and index is not None else [index]
    return found


@contextmanager
def fake_tensors() -> Iterator[None]:
    """Every tensor made inside is fake: models of any size are built in no time and no memory.

    Of values: numbers read from a tensor are 1, and masks that choose elements choose all of them, which is right for
    labels without ignored pixels. ``Module.to`` does not work for fake parameters; build inside ``torch.device(...)``.
    """
    with FakeTensorMode(allow_non_fake_inputs=True), _Values():
        yield


@dataclass(frozen=True)
class CountedStep(StepCost):
    """What one training step needs, counted without running it.

    Attributes:
        model_bytes: Parameters and buffers.
        peak_bytes: The most at once of all tensors: the model, the batch, gradients, the optimizer's states, and what
            forward, backward and the optimizer make. Without kernels' workspaces and the process itself.
    """

    model_bytes: int
    peak_bytes: int


def count_step(build: Callable[[], TrainingStep]) -> CountedStep:
    """Count a training step that needs no memory.

    Args:
        build: Makes the model, its batch and their step; it is called where all tensors are fake.

    Raises:
        ValueError: The step depends on values in a way that cannot be counted.
    """
    with _counting() as peak:
        step = build()
        peak_bytes = _peak_of(step, peak)  # first: what the other counts leave for the garbage collector is alive
        model = {t.untyped_storage() for t in (*step.model.parameters(), *step.model.buffers())}
        model_bytes = sum(storage.nbytes() for storage in model)
        return CountedStep(**asdict(step_cost(step)), model_bytes=model_bytes, peak_bytes=peak_bytes)


def count_peak(build: Callable[[], TrainingStep]) -> int:
    """:attr:`CountedStep.peak_bytes` alone, in half the time; see :func:`count_step`."""
    with _counting() as peak:
        return _peak_of(build(), peak)


def _peak_of(step: TrainingStep, peak: PeakBytes) -> int:
    step()  # makes the optimizer's states
    gc.collect()
    peak.reset()
    step()
    return peak.peak


@contextmanager
def _counting() -> Iterator[PeakBytes]:
    try:
        with fake_tensors(), PeakBytes() as peak:
            yield peak
    except _NEEDS_VALUES as error:
        raise ValueError(f"the step depends on its tensors' values and cannot be counted: {error}") from error


@dataclass(frozen=True)
class Fit:
    """The largest batch that fits.

    Attributes:
        batch_size: Images in it; 0 if not even the smallest fits.
        peak_bytes: Its peak; that of the smallest if none fits.
    """

    batch_size: int
    peak_bytes: int


def largest_batch(peak: Callable[[int], int], memory: int, smallest: int = 1, most: int = 2**16) -> Fit:
    """Find the largest batch whose peak is within the memory.

    A peak is nearly affine in the batch size. The line through two counts says where to count next, and the answer
    is never taken from the line: that batch was counted and fits, and the next larger one was counted and does not.

    Args:
        peak: Bytes that a batch of so many images needs; never less for more images.
        memory: Bytes there are.
        smallest: The batch to begin with; norms over a batch may need two images.
        most: The search ends here.
    """
    counted = {smallest: peak(smallest)}
    if counted[smallest] > memory:
        return Fit(0, counted[smallest])
    low, high, size = smallest, most + 1, smallest + 1
    while high > low + 1:
        counted[size] = peak(size)
        low, high = (size, high) if counted[size] <= memory else (low, size)
        x0, x1 = (low, high) if high in counted else sorted(counted)[-2:]
        y0, y1 = counted[x0], counted[x1]
        if high in counted and len(counted) > 6:  # no line
            size = (low + high) // 2
        elif y0 == y1:  # the peak is the optimizer's, which no batch size moves
            size = 2 * low
        else:
            size = x0 + (memory - y0) * (x1 - x0) // (y1 - y0)
        size = min(max(size, low + 1), high - 1)
    return Fit(low, counted[low])
