"""Bytes that are kept for backward."""

import sys
import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves


class SavedTensors:
    """Counts what a forward pass keeps for backward; each storage once.

    Use it around a forward pass, and hold its result::

        with SavedTensors(ignore=model.parameters(), model=model) as saved:
            loss = model(x).mean()
        print(saved.bytes, saved.of("backbone"))

    Counted is what is still alive at the end: tensors that autograd saved for what can still run backward, and those
    made meanwhile, whoever holds them: a cache of selective checkpointing, an attribute, the result. What is saved for
    a result that is thrown away, such as the costs of a matching, is not. Compiled functions run uncompiled.

    Args:
        ignore: Tensors that exist anyway, such as the parameters; their storages are left out.
        model: Whose modules the bytes are told apart by. Takes time.

    Attributes:
        bytes: Sum of the sizes of the storages.
        by_module: The same, by the module whose method was the first to save it, or else made it: its name, and the
            method's unless that is ``forward``, such as ``'decode_head.loss_by_feat()'``; ``''`` where it is none.
    """

    def __init__(self, ignore: Iterable[Tensor] = (), model: nn.Module | None = None) -> None:
        self._ignored = {part.untyped_storage()._cdata for tensor in ignore for part in _parts(tensor)}
        self._names = {} if model is None else {id(module): name for name, module in model.named_modules()}
        self._saved: list[weakref.ref[_Saved]] = []
        self._made = _MadeStorages(self._caller)
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._pack, lambda saved: saved.tensor)
        self.bytes = 0
        self.by_module: dict[str, int] = {}

    def of(self, part: str) -> int:
        """Bytes of a part of the model, such as ``'backbone'``, with all that is in it."""
        return sum(size for name, size in self.by_module.items() if name == part or name.startswith(f"{part}."))

    def _pack(self, tensor: Tensor) -> "_Saved":
        # detached: what a node has made leads back to the node, which then would hold itself
        saved = _Saved(tensor if tensor.grad_fn is None else tensor.detach(), self._caller())
        self._saved.append(weakref.ref(saved))
        return saved

    def _caller(self) -> str:
        """Of the methods that run, the innermost one of a module of the model."""
        frame = sys._getframe(2) if self._names else None
        while frame is not None:
            arguments = frame.f_code.co_varnames[: frame.f_code.co_argcount]
            if arguments and arguments[0] == "self":
                name = self._names.get(id(frame.f_locals["self"]))
                if name is not None:
                    method = frame.f_code.co_name
                    return name if method == "forward" else f"{name}.{method}()".lstrip(".")
            frame = frame.f_back
        return ""

    def __enter__(self) -> "SavedTensors":
        self._hooks.__enter__()
        self._made.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._made.__exit__(*exception)
        self._hooks.__exit__(*exception)
        found: dict[int, tuple[int, str]] = {}
        for saved in filter(None, (reference() for reference in self._saved)):
            storage = saved.tensor.untyped_storage()
            found.setdefault(storage._cdata, (storage.nbytes(), saved.by))
        found = self._made.alive() | found
        by_module: Counter[str] = Counter()
        for address, (size, by) in found.items():
            by_module[by] += 0 if address in self._ignored else size
        self.by_module = {name: size for name, size in by_module.most_common() if size}
        self.bytes = sum(by_module.values())
        self._saved.clear()


class _Saved:
    """A tensor that autograd holds for as long as it may need it."""

    def __init__(self, tensor: Tensor, by: str) -> None:
        self.tensor, self.by = tensor, by


def _parts(tensor: Tensor) -> Iterator[Tensor]:
    """A tensor, and those that it is made of, as one that is held in bfloat16."""
    yield tensor
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        for name in names:
            yield from _parts(getattr(tensor, name))


class _MadeStorages(TorchDispatchMode):
    """Remembers the storages that operators make, without keeping them alive."""

    def __init__(self, caller: Callable[[], str]) -> None:
        super().__init__()
        self._caller = caller
        # a weak reference also keeps the address from being used again
        self._made: dict[int, tuple[StorageWeakRef, int, str]] = {}

    def alive(self) -> dict[int, tuple[int, str]]:
        """Address, size in bytes and maker of those that still exist."""
        return {address: (size, by) for address, (storage, size, by) in self._made.items() if not storage.expired()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {leaf.untyped_storage()._cdata for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata not in given:
                storage = leaf.untyped_storage()
                self._made[storage._cdata] = (StorageWeakRef(storage), storage.nbytes(), self._caller())
        return result
