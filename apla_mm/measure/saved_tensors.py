"""Bytes that autograd keeps for backward."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class SavedTensors:
    """Counts what autograd saves for backward while it is active; each storage once.

    Use it around a forward pass::

        with SavedTensors(ignore=model.parameters()) as saved:
            loss = model(x).mean()
        print(saved.bytes)

    A custom autograd function is counted by what it passes to ``save_for_backward``.

    Args:
        ignore: Tensors that exist anyway, such as the parameters; their storages are left out.

    Attributes:
        bytes: Sum of the sizes of the storages saved so far.
    """

    def __init__(self, ignore: Iterable[Tensor] = ()) -> None:
        self._ignored = {tensor.untyped_storage().data_ptr() for tensor in ignore}
        # the storages are held, so that no address is used for a second one while counting
        self._storages: dict[int, torch.UntypedStorage] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda tensor: tensor)

    @property
    def bytes(self) -> int:
        """Sum of the sizes of the storages saved so far."""
        return sum(storage.nbytes() for storage in self._storages.values())

    def _pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._ignored:
            self._storages[storage.data_ptr()] = storage
        return tensor

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(*exception)
