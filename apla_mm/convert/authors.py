"""Checkpoints of the APLA authors' own code, in which each projection is stored in two parts.

There a projection's output channels are in the order of a permutation ``inds`` (``indices`` in the code for DINOv2),
those that train first: ``proj_weight1`` (r, in) and ``proj_bias1`` (r,) are the channels ``inds[:r]`` and train,
``proj_weight2`` (out - r, in) and ``proj_bias2`` (out - r,) are the channels ``inds[r:]``.

The permutation is drawn when the model is built, and loading does not always restore it: the forward pass reads views
of the tensor that was drawn, and what is saved and loaded is a buffer, which, once the model was moved to a GPU, is
another tensor. So a run that is resumed there computes with a new permutation, and saves the old one. Without the
right one the channels cannot be put into their places, and nothing else in a state dict shows it.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..delta.weights_file import Weights
from ..text import listed

_PARTS = ("proj_weight1", "proj_weight2", "proj_bias1", "proj_bias2")
_INDICES = ("inds", "indices")
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def is_authors(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has projections in two parts."""
    return any(name.rpartition(".")[2] in _PARTS for name in state)


def plain_state(
    state: Mapping[str, Tensor], trained: Mapping[str, Sequence[int]] | None = None
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Put the two parts of each projection together.

    Args:
        state: The state dict of the authors' checkpoint.
        trained: Where the checkpoint does not have them: ``'block_<i>'`` to the channels that train in that block, in
            the order in which they were given to training, as in the authors' ``inds_path`` files.

    Returns:
        The plain state dict, with ``proj.weight`` (out, in) and ``proj.bias`` (out,), and the channels that trained by
        projection, int64 (r,), ascending.

    Raises:
        ValueError: There are no such projections, or one does not fit together; names which and why.
    """
    if not is_authors(state):
        raise ValueError(f"there is no 'proj_weight1' in it, but {listed(state.keys(), 3)}: this checkpoint is plain")
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    attentions = [name.rpartition(".")[0] for name in state if name.rpartition(".")[2] in _PARTS]
    # of the authors' other releases, and no tensor of the plain model
    plain = {name: tensor for name, tensor in state.items() if name.rpartition(".")[2] != "partial_size"}
    channels: dict[str, Tensor] = {}
    for attention in dict.fromkeys(attentions):
        prefix = f"{attention}." if attention else ""
        parts = {key: plain.pop(prefix + key) for key in (*_PARTS, *_INDICES) if prefix + key in plain}
        name = f"{prefix}proj"
        if f"{name}.weight" in plain:
            raise ValueError(f"projection '{name}' is there in two parts and whole: it is not known which counts")
        try:
            order, r = _checked(parts, _listed_for(attention, trained))
        except ValueError as error:
            raise ValueError(f"projection '{name}': {error}") from error
        for kind in ("weight", "bias"):
            if f"proj_{kind}1" in parts:
                rows = torch.cat([parts[f"proj_{kind}1"], parts[f"proj_{kind}2"]])
                plain[f"{name}.{kind}"] = torch.empty_like(rows).index_copy_(0, order, rows)
        channels[name] = order[:r].sort().values
    return plain, channels


def check_not_resumed(weights: Weights, base: Mapping[str, Tensor], base_prefix: str = "") -> bool:
    """Refuse a checkpoint of a run that did not start from its base, and so computed with other ``inds`` than it saved.

    Args:
        weights: The authors' checkpoint. Its ``original_state`` is what its run started from, if it is there.
        base: The state dict before training.
        base_prefix: What the checkpoint's names have before the base's.

    Returns:
        Whether that is known: not if the checkpoint does not hold what its run started from.

    Raises:
        ValueError: It started from something else.
    """
    if not any(name.rpartition(".")[2] == "inds" for name in weights.state):
        return True  # 'indices' are what the forward pass reads
    original = weights.rest.get("original_state")
    if not isinstance(original, dict) or not all(isinstance(tensor, Tensor) for tensor in original.values()):
        return False
    original = {str(name): tensor for name, tensor in original.items()}
    if not any(name.rpartition(".")[2] == "inds" for name in original):
        return False
    start, channels = plain_state(original)
    known = {projection: base.get(f"{projection}.weight".removeprefix(base_prefix)) for projection in channels}
    for projection, before in known.items():
        if before is not None and not torch.equal(start[f"{projection}.weight"], before):
            raise ValueError(
                f"projection '{projection}': the run that saved this checkpoint did not start from the base: it was "
                "resumed, and then the authors' code computes with newly drawn 'inds' and saves the old ones. So the "
                "trained channels' places are not known. If all its runs were given a file of channels (inds_path), "
                "name it by --inds; else take a checkpoint from before the run was resumed"
            )
    return all(before is not None for before in known.values())


def _checked(parts: Mapping[str, Tensor], trained: Sequence[int] | None) -> tuple[Tensor, int]:
    """The order of a projection's channels, int64 (out,), and how many of them, the first, train."""
    needed = ["proj_weight1", "proj_weight2"]
    if any(f"proj_bias{i}" in parts for i in (1, 2)):
        needed += ["proj_bias1", "proj_bias2"]
    if missing := [key for key in needed if key not in parts]:
        raise ValueError(f"{listed(missing)} are missing: the checkpoint is not whole")
    one, two = parts["proj_weight1"], parts["proj_weight2"]
    if one.dim() != 2 or two.dim() != 2 or one.shape[1:] != two.shape[1:] or not one.is_floating_point():
        raise ValueError(
            f"its weights must have the shapes (r, in) and (out - r, in), and are {tuple(one.shape)} and "
            f"{tuple(two.shape)}"
        )
    r, out = len(one), len(one) + len(two)
    if not r:
        raise ValueError("no channel of it trains")
    for i, size in ((1, r), (2, out - r)):
        bias = parts.get(f"proj_bias{i}")
        if bias is not None and bias.shape != (size,):
            raise ValueError(f"proj_bias{i} must have the shape ({size},), as its weight, and has {tuple(bias.shape)}")
    if len({parts[key].dtype for key in needed}) > 1:
        raise ValueError("its parts have different dtypes")
    return _order(parts, trained, r, out), r


def _order(parts: Mapping[str, Tensor], trained: Sequence[int] | None, r: int, out: int) -> Tensor:
    saved = [parts[key] for key in _INDICES if key in parts]
    if not saved and trained is None:
        raise ValueError(
            "its 'inds' are missing, which say where its channels belong. They were drawn when the model was built, "
            "and the checkpoint does not tell them otherwise: they are not guessed here. If training was given a file "
            "of them (inds_path), name it by --inds"
        )
    if len(saved) == 2 and not torch.equal(*saved):
        raise ValueError("it has 'inds' and 'indices', and they differ: it is not known which one training used")
    if trained is not None:
        given = _in_order(trained, r, out)
        if saved and not torch.equal(saved[0].to(torch.int64), given):
            raise ValueError(
                "its 'inds' are not those of the file that --inds names: one of them is not what training used. After "
                "a run of the authors' code was resumed, 'inds' may be stale"
            )
        return given
    inds = saved[0]
    if inds.dim() != 1 or inds.dtype not in _INTEGERS:
        raise ValueError(f"its 'inds' must be ints of shape ({out},), not {inds.dtype} of {tuple(inds.shape)}")
    if len(inds) != out:
        raise ValueError(
            f"its 'inds' are {len(inds)}, and its weights have {r} + {out - r} = {out} channels: they are of another "
            "model, or only part of them; channels cannot be put into their places by these"
        )
    inds = inds.to(torch.int64)
    if wrong := [i for i in inds.tolist() if not 0 <= i < out]:
        raise ValueError(f"its 'inds' {wrong[:5]} are not in [0, {out})")
    if len(inds.unique()) != out:
        raise ValueError("its 'inds' are not distinct: some channels would be written twice, and others never")
    return inds


def _in_order(trained: Sequence[int], r: int, out: int) -> Tensor:
    if any(type(i) is not int or not 0 <= i < out for i in trained) or len(set(trained)) != len(trained):
        raise ValueError(f"the channels listed for it must be distinct ints in [0, {out})")
    if len(trained) != r:
        raise ValueError(f"{len(trained)} channels are listed for it, and {r} are stored as trained")
    chosen = set(trained)
    return torch.tensor([*trained, *(i for i in range(out) if i not in chosen)])


def _listed_for(attention: str, trained: Mapping[str, Sequence[int]] | None) -> Sequence[int] | None:
    if trained is None:
        return None
    numbers = re.findall(r"(?:^|\.)blocks\.(?:\d+\.)?(\d+)(?:\.|$)", attention)
    key = f"block_{numbers[-1]}" if numbers else ""
    if key not in trained:
        raise ValueError(f"'{attention}' has no entry in the file that --inds names; it has {listed(trained.keys())}")
    return trained[key]
