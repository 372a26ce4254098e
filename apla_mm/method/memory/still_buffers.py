"""Buffers that stand still while what moves them is computed again."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor, nn


class StillBuffers:
    """A context in which modules in training mode move copies of their buffers: running statistics of norms, say.

    Args:
        part: Whose buffers.
        inner: A context within this one.
    """

    def __init__(self, part: nn.Module, inner: AbstractContextManager[Any] | None = None) -> None:
        self._part, self._inner = part, inner or nullcontext()
        self._before: list[tuple[dict[str, Tensor | None], str, Tensor]] = []

    def __enter__(self) -> None:
        self._before = [
            (module._buffers, name, buffer)
            for module in self._part.modules()
            if module.training
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        for buffers, name, buffer in self._before:
            buffers[name] = buffer.clone()
        self._inner.__enter__()

    def __exit__(self, *error: Any) -> Any:
        try:
            return self._inner.__exit__(*error)
        finally:
            for buffers, name, buffer in self._before:
                buffers[name] = buffer
            self._before = []
