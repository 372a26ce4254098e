"""State dicts that are loaded whole or not at all."""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from mmengine.model import BaseTTAModel, is_model_wrapper
from mmengine.runner import checkpoint as mmengine_checkpoint
from torch import Tensor, nn

from ..delta import DeltaError
from ..delta.errors import listed


class _Whole(OrderedDict):
    """Modules' versions of a state dict, the one part of it that mmengine hands on as it is."""

    source: str


def must_fit(state: "OrderedDict[str, Tensor]", source: str) -> "OrderedDict[str, Tensor]":
    """Have mmengine refuse to load a state dict into a model that would keep some of its own weights.

    Those of plain checkpoints it loads as far as they fit, and leaves a line in the log.

    Args:
        state: The state dict.
        source: Its file, for the error.

    Returns:
        The same.
    """
    metadata = _Whole(getattr(state, "_metadata", {}))
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
    shapes = [
        f"{name} ({tuple(state[name].shape)}, not {tuple(tensor.shape)})"
        for name, tensor in own.items()
        if name in state and state[name].shape != tensor.shape
    ]
    parts = [f"it lacks {listed(missing)}"] if missing else []
    parts += [f"{listed(shapes)} are of another shape"] if shapes else []
    if parts:
        more = state.keys() - own.keys()
        raise DeltaError(
            f"delta '{source}' is not of this model, and nothing was loaded: {'; '.join(parts)}"
            f"{f'; the model lacks {listed(more, 3)}' if more else ''}. Use the config that it was trained with; to "
            "load what fits, make a plain checkpoint of it by tools/model_converters/merge_delta.py"
        )


def _load_state_dict(module: Any, state_dict: Mapping[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    metadata = getattr(state_dict, "_metadata", None)
    if isinstance(metadata, _Whole):
        model = module
        while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
            model = model.module
        check_fits(model, state_dict, metadata.source)
    return _load_what_fits(module, state_dict, *args, **kwargs)


# what Runner, init_model, load_checkpoint and the inferencers all call by this name
_load_what_fits = mmengine_checkpoint.load_state_dict
mmengine_checkpoint.load_state_dict = _load_state_dict
