"""State dicts of others under timm's names, and whether one fits a model."""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

#: parts beside an encoder, of pretraining or of a task, that no feature map needs
_BESIDE = re.compile(
    r"(\w*decoder\w*|head|head_dist|\w+_head|fc_norm|attn_pool|mask_token|pre_logits|projector|predictor)(\.|$)"
)


@dataclass(frozen=True)
class TimmState:
    """A state dict under timm's names, compared with a model.

    Attributes:
        state: The state dict, less what is of no use.
        left_out: What that is.
        misfit: Why it does not fit the model; empty if it fits.
        found: How many of the model's names it has, in their shapes.
    """

    state: dict[str, Tensor]
    left_out: tuple[str, ...]
    misfit: str
    found: int


def to_timm_keys(state: Mapping[str, Tensor], vit: nn.Module) -> TimmState:
    """Rename a state dict as timm does, resample its position embedding to the model's, and compare it with the model.

    Args:
        state: Under the names of timm, DINOv2, CLIP, or others that timm knows. It stays as it is.
        vit: The model.
    """
    convert: Any = getattr(sys.modules[type(vit).__module__], "checkpoint_filter_fn", None)
    own = vit.state_dict()
    try:
        renamed = dict(state) if convert is None else convert(dict(state), vit)
    except Exception as error:  # it takes its own kinds apart, and fails at others in any way
        return TimmState({}, (), f"timm cannot convert it ({type(error).__name__}: {error})", 0)
    if lost := _lost_biases(state, renamed):
        told = f"biases of q, k and v that are not zero, such as '{lost}', and the model has none"
        return TimmState({}, (), f"it has {told}: the one of timm's that has them ends in _qkvb", 0)
    left_out = tuple(key for key in renamed if key not in own and _BESIDE.match(key))
    kept = {key: tensor for key, tensor in renamed.items() if key not in left_out}
    found = sum(key in kept and kept[key].shape == tensor.shape for key, tensor in own.items())
    return TimmState(kept, left_out, misfit(kept, own), found)


def _lost_biases(state: Mapping[str, Tensor], renamed: Mapping[str, Tensor]) -> str:
    """A bias that timm leaves out without a word, of DINOv3's files; empty if there is none."""
    for name, tensor in state.items():
        if name.endswith("attn.qkv.bias"):
            attention = name[name.find("blocks.") :].removesuffix("qkv.bias")
            kept = (key.removeprefix(attention) for key in renamed if key.startswith(attention))
            q, _, v = tensor.chunk(3)  # that of k is masked
            if (q.any() or v.any()) and not any(key.endswith("bias") and key != "proj.bias" for key in kept):
                return name
    return ""


def misfit(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> str:
    """Why a state dict does not fit a model's, as text; empty if it does."""
    shapes = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own.keys() & state.keys()
        if own[key].shape != state[key].shape
    ]
    problems = {
        "missing": sorted(own.keys() - state.keys()),
        "unexpected": sorted(state.keys() - own.keys()),
        "of another shape": sorted(shapes),
    }
    return "; ".join(f"{len(keys)} {what}: {', '.join(keys[:4])}" for what, keys in problems.items() if keys)
