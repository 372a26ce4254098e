"""State dicts of deltas, which are loaded whole or not at all.

mmengine loads what fits of a state dict, leaves the rest of the model at random, and writes a line to the log. That is
for plain checkpoints to decide; a delta is of one model.
"""

import sys
from collections import OrderedDict
from collections.abc import Mapping
from copy import deepcopy
from typing import Any

from torch import Tensor, nn

from ..delta import DeltaError
from ..internals import model_being_loaded
from ..text import listed


class _StrictMetadata(OrderedDict):
    """Modules' versions of a state dict, the one part of it that mmengine hands on unchanged, and asks first."""

    source = ""

    def get(self, key: str, default: Any = None) -> Any:
        # '' is asked for once, for the whole model and before anything is written to it
        if key == "" and (loading := model_being_loaded(sys._getframe(1))) is not None:
            check_fits(*loading, self.source)
        return super().get(key, default)

    def __reduce__(self) -> Any:
        # as mmengine's own: files are read without this package
        return OrderedDict, (), None, None, iter(self.items())

    def __deepcopy__(self, memo: dict[int, Any]) -> "_StrictMetadata":
        copied = _StrictMetadata(deepcopy(list(self.items()), memo))
        copied.source = self.source
        return copied


def must_fit(state: "OrderedDict[str, Tensor]", source: str) -> "OrderedDict[str, Tensor]":
    """Have mmengine refuse to load a state dict into a model that would keep some of its own weights.

    Args:
        state: The state dict.
        source: Its file, for the error.

    Returns:
        The same.
    """
    metadata = _StrictMetadata(getattr(state, "_metadata", {}))
    metadata.source = source
    state._metadata = metadata  # type: ignore[attr-defined]
    return state


def check_fits(model: nn.Module, state: Mapping[str, Tensor], source: str) -> None:
    """Check that a state dict has all weights of a model.

    Raises:
        DeltaError: It has not; names those that it lacks, or that have other shapes.
    """
    own = model.state_dict()
    missing = own.keys() - state.keys()
    others = [
        f"{name} ({tuple(state[name].shape)}, not {tuple(tensor.shape)})"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    parts = [f"it lacks {listed(missing)}"] if missing else []
    parts += [f"{listed(others)} are of another shape"] if others else []
    if parts:
        more = state.keys() - own.keys()
        raise DeltaError(
            f"delta '{source}' is not of this model, and nothing was loaded: {'; '.join(parts)}"
            f"{f'; the model lacks {listed(more, 3)}' if more else ''}. Use the config that it was trained with; to "
            "load what fits, make a plain checkpoint of it by apla-mm merge DELTA OUT.pth"
        )
