"""Bytes that are kept for backward."""

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class SavedTensors:
    """Counts what a forward pass keeps for backward; each storage once.

    Use it around a forward pass, and hold its result::

        with SavedTensors(ignore=model.parameters()) as saved:
            loss = model(x).mean()
        print(saved.bytes)

    Counted are the tensors that autograd saves, and those made meanwhile that are still alive at the end, whoever
    holds them: a cache of selective checkpointing, an attribute, the result. Compiled functions run uncompiled.

    Args:
        ignore: Tensors that exist anyway, such as the parameters; their storages are left out.

    Attributes:
        bytes: Sum of the sizes of the storages.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        self._ignored = {part.untyped_storage()._cdata for tensor in ignore for part in _parts(tensor)}
        # held, so that no address is used for a second storage while counting
        self._saved: dict[int, torch.UntypedStorage] = {}
        self._made = _MadeStorages()
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)
        self.bytes = 0

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        self._saved[storage._cdata] = storage
        return tensor

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        self._made.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._made.__exit__(*exception)
        self._hooks.__exit__(*exception)
        sizes = self._made.alive() | {address: storage.nbytes() for address, storage in self._saved.items()}
        self.bytes = sum(size for address, size in sizes.items() if address not in self._ignored)
        self._saved.clear()


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, and those that it is made of, as one that is held in bfloat16."""
    yield tensor
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _parts(getattr(tensor, name))


class _MadeStorages(TorchDispatchMode):
    """Remembers the storages that operators make, without keeping them alive."""

    def __init__(self) -> None:
        super().__init__()
        # a weak reference also keeps the address from being used again
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def alive(self) -> dict[int, int]:
        """Address and size in bytes of those that still exist."""
        return {address: size for address, (storage, size) in self._made.items() if not storage.expired()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        return result
