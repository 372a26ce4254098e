"""Pretrained weights of a backbone out of whatever file they lie in."""

from pathlib import Path
from typing import Any

from torch import Tensor

from ...delta.pickles import read_pickle
from ...delta.weights_file import Kind, kind_of, read_weights

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
_PREFIXES = ("module.", "backbone.vit.", "backbone.")


def read_pretrained(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or a pickle of tensors, on the CPU.

    What checkpoints usually wrap it in is taken off: a dict around it (``state_dict``, ``model``, ``teacher``, the EMA
    first), and prefixes (``module.``, ``backbone.``).

    Args:
        path: The file.

    Returns:
        Names to tensors.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, a delta, or holds no state dict.
    """
    try:
        kind = kind_of(path)
        if kind is Kind.DELTA:
            raise ValueError(
                f"'{path}' is a delta, of which load_from takes all; or name a plain checkpoint that "
                "tools/model_converters/merge_delta.py makes of it"
            )
        tensors = _unwrap(read_pickle(path)) if kind is Kind.PICKLE else read_weights(path).state
        if not tensors:
            raise ValueError(f"'{path}' holds no state dict")
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"pretrained: {error}") from error
    for prefix in _PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors


def _unwrap(state: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return {key: value for key, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
