"""Reading pretrained weights, pickles as untrusted."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model", "teacher")
_PREFIXES = ("module.", "backbone.vit.", "backbone.")


def read_weights(path: str | Path) -> dict[str, Tensor]:
    """Read a state dict from a ``.safetensors`` file or a pickle of tensors, on the CPU.

    What checkpoints usually wrap it in is taken off: a dict around it (``state_dict``, ``model``, ``teacher``, means
    of weights first), and prefixes (``module.``, ``backbone.``).

    Args:
        path: The file.

    Returns:
        Names to tensors.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is no state dict, or a pickle that holds more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"pretrained='{path}': no such file (looked in {Path.cwd()})")
    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file fails in any way
        raise ValueError(
            f"pretrained='{path}' cannot be read: {next(iter(str(error).splitlines()), type(error).__name__)}"
        ) from error
    tensors = _unwrap(state)
    if any(str(key).startswith("channels/") for key in tensors):
        raise ValueError(
            f"pretrained='{path}' is a delta, of which load_from takes all; or name a plain checkpoint that "
            "tools/model_converters/merge_delta.py makes of it"
        )
    if not tensors:
        raise ValueError(f"pretrained='{path}' holds no state dict")
    for prefix in _PREFIXES:
        if any(key.startswith(prefix) for key in tensors):
            tensors = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
    return tensors


def _unwrap(state: Any) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
    return {key: value for key, value in state.items() if isinstance(value, Tensor)} if isinstance(state, dict) else {}
