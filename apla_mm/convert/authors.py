"""Checkpoints of the APLA authors' own code, in which each projection is stored in two parts.

There a projection's output channels are in the order of a permutation ``inds`` (``indices`` in the code for DINOv2),
those that train first: ``proj_weight1`` (r, in) and ``proj_bias1`` (r,) are the channels ``inds[:r]`` and train,
``proj_weight2`` (out - r, in) and ``proj_bias2`` (out - r,) are the channels ``inds[r:]``.

The permutation is drawn when the model is built, and loading does not always restore it: the forward pass reads views
of the tensor that was drawn, and what is saved and loaded is a buffer, which, once the model was moved to a GPU, is
another tensor. So a run that is resumed there computes with a new permutation, and saves the old one. Without the
right one the channels cannot be put into their places, and nothing else in a state dict shows it. A run that is resumed
on a CPU, or that begins from a ``pretrained_path``, which is loaded before the model is moved, computes with what it
saves. The settings of the run, the checkpoint's ``parameters``, tell these apart.

With ``partial_size: full``, for several GPUs, projections are plain, and train whole. What is trained without labels
has a student and a teacher.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..delta.pickles import read_pickle
from ..delta.weights_file import Kind, Weights, kind_of, read_weights, weights_in
from ..text import listed, printable

_PARTS = ("proj_weight1", "proj_weight2", "proj_bias1", "proj_bias2")
_INDICES = ("inds", "indices")
_MODELS = ("student", "teacher")  #: of training without labels
_STATES = ("state_dict", "model", "module")  #: where a checkpoint has its state dict
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.uint8)


def is_authors(state: Mapping[str, Any]) -> bool:
    """Whether a state dict has projections in two parts."""
    return any(name.rpartition(".")[2] in _PARTS for name in state)


def read_authors(path: str | Path, part: str | None = None) -> Weights:
    """Read a checkpoint of the authors' code.

    Args:
        path: The file.
        part: ``'student'`` or ``'teacher'``, where it holds both.

    Returns:
        Its state dict, or that of the part, and what lies beside it. ``original_state`` there is of the same part,
        under the same names.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It holds no state dict, or not that part, or both and ``part`` is None.
    """
    path = Path(path)
    checkpoint = read_pickle(path) if kind_of(path) is Kind.PICKLE else None
    entries = checkpoint if isinstance(checkpoint, dict) else {}
    for holder in (entries, *(entries.get(key) for key in _STATES)):
        if isinstance(holder, dict) and (models := [name for name in _MODELS if isinstance(holder.get(name), dict)]):
            rest = {key: value for key, value in entries.items() if key not in (*_MODELS, *_STATES)}
            own = weights_in(holder[_chosen(models, part, path)], path)
            return _with_original(Weights(own.state, {**rest, **own.rest}), part)
    weights = read_weights(path) if checkpoint is None else weights_in(checkpoint, path)
    state = without_prefix(weights.state, "module.")
    if models := _models_in(state):
        state = _of_model(state, _chosen(models, part, path))
    elif part is not None:
        raise ValueError(f"'{path}' holds neither a student nor a teacher, but {listed(state, 3)}: leave --part out")
    return _with_original(replace(weights, state=state), part)


def without_prefix(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A state dict without what all of its names begin with, if they do."""
    if not all(str(name).startswith(prefix) for name in state):
        return dict(state)
    return {str(name).removeprefix(prefix): tensor for name, tensor in state.items()}


def full_state(weights: Weights) -> dict[str, Tensor] | None:
    """The state dict of a run whose projections trained in full, which is plain already.

    Args:
        weights: The authors' checkpoint.

    Returns:
        The state dict, without a prefix of DDP; None if projections trained in part, or its settings do not say so.

    Raises:
        ValueError: The settings say so, and there are no such projections.
    """
    if is_authors(weights.state) or _setting(weights, "model_params", "adaptation", "params", "partial_size") != "full":
        return None
    state = without_prefix(weights.state, "module.")
    if not full_projections(state):
        raise ValueError(
            f"its parameters say partial_size: full, and no 'attn.proj.weight' is in it: {listed(state, 3)}"
        )
    return state


def full_projections(state: Mapping[str, Tensor]) -> list[str]:
    """Names of the projections that the authors' code trains in full."""
    return [name.removesuffix(".weight") for name in state if f".{name}".endswith(".attn.proj.weight")]


def check_full(state: Mapping[str, Tensor], base: Mapping[str, Tensor], base_prefix: str = "") -> None:
    """Check that what was frozen while projections trained in full is the base's.

    Args:
        state: After training.
        base: Before it.
        base_prefix: What the names in ``state`` have before the base's.

    Raises:
        ValueError: It is not.
    """
    roots = {re.split(r"(?:^|(?<=\.))blocks\.", name)[0] for name in full_projections(state)}  # heads train too
    moved = [
        name
        for name, tensor in state.items()
        if (before := base.get(name.removeprefix(base_prefix))) is not None
        and name.startswith(tuple(roots))
        and not (name.startswith("fc.") or ".attn.proj." in f".{name}")
        and before.shape == tensor.shape
        and not torch.equal(before, tensor)
    ]
    if moved:
        raise ValueError(
            f"{listed(moved, 3)} differ from the base, and were frozen: it is of another base. If the run began from a "
            "pretrained_path, give that as --base"
        )


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
        raise ValueError(
            f"there is no 'proj_weight1' in it, but {listed(state.keys(), 3)}: this checkpoint is plain. Use it as it "
            "is; apla-mm extract makes a delta of it"
        )
    state = without_prefix(state, "module.")
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
    """Refuse a checkpoint of a run that was resumed on GPUs, and so computed with other ``inds`` than it saved.

    What a run says of itself counts first: without ``restore_session`` it was not resumed, and without GPUs resuming
    did no harm. Else it must have started from its base.

    Args:
        weights: The authors' checkpoint. Its ``parameters`` are the run's settings, its ``original_state`` is what it
            started from, if they are there.
        base: The state dict before training.
        base_prefix: What the checkpoint's names have before the base's.

    Returns:
        Whether it is known that ``inds`` are right: not if the checkpoint holds neither.

    Raises:
        ValueError: It started from something else.
    """
    if not any(name.rpartition(".")[2] == "inds" for name in weights.state):
        return True  # 'indices' are what the forward pass reads
    if _setting(weights, "training_params", "restore_session") is False or _ran_on_cpu(weights):
        return True
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
            raise ValueError(f"projection '{projection}': {_resumed(weights)}")
    return all(before is not None for before in known.values())


def _resumed(weights: Weights) -> str:
    """Why ``inds`` of a run that did not start from its base are not trusted, and what to do."""
    says = _setting(weights, "training_params", "restore_session")
    how = "says restore_session, on GPUs" if says is True else "does not say otherwise: its restore_session is missing"
    inds = _setting(weights, "model_params", "adaptation", "params", "inds_path")
    file = (
        f"If all its runs were given the file '{printable(inds)}',"
        if isinstance(inds, str)
        else ("If all its runs were given a file of channels (inds_path),")
    )
    start = _setting(weights, "transfer_learning_params", "pretrained_path")
    began = f"'{printable(start)}'" if isinstance(start, str) and start else "a pretrained_path"
    return (
        "the run that saved this checkpoint did not start from the base: it was resumed, and then the authors' code "
        f"computes with newly drawn 'inds' and saves the old ones; the checkpoint {how}. So the trained channels' "
        f"places are not known. {file} name it by --inds; if it began from {began} and was not resumed, give that, "
        "converted, as --base; else take a checkpoint from before the run was resumed"
    )


def _ran_on_cpu(weights: Weights) -> bool:
    used, gpus = (_setting(weights, "system_params", key) for key in ("use_GPU", "world_size"))
    return used is False or (type(gpus) is int and gpus == 0)


def _setting(weights: Weights, *keys: str) -> Any:
    """One of a run's settings; None if the checkpoint does not tell it."""
    found: Any = weights.rest.get("parameters")
    for key in keys:
        found = found.get(key) if isinstance(found, dict) else None
    return found


def _models_in(state: Mapping[str, Any]) -> list[str]:
    return [model for model in _MODELS if any(str(name).startswith(f"{model}.") for name in state)]


def _of_model(state: Mapping[str, Any], model: str) -> dict[str, Any]:
    return {name.removeprefix(f"{model}."): t for name, t in state.items() if str(name).startswith(f"{model}.")}


def _chosen(models: Sequence[str], part: str | None, path: Path) -> str:
    if part is None and len(models) > 1:
        raise ValueError(
            f"'{path}' holds a student and a teacher: say which by --part student or --part teacher. The authors' code "
            "evaluates the teacher, the mean of the student over training"
        )
    if part is not None and part not in models:
        raise ValueError(f"'{path}' holds no {part}, but a {models[0]}: give --part {models[0]}, or leave it out")
    return part or models[0]


def _with_original(weights: Weights, part: str | None) -> Weights:
    """With an ``original_state`` of the same model and under the same names as the state dict."""
    original = weights.rest.get("original_state")
    if not isinstance(original, dict):
        return weights
    original = without_prefix(original, "module.")
    if models := _models_in(original):  # of what is saved of them the teacher's backbone is the usual part
        original = _of_model(original, part if part in models else models[-1])
        backbone = {name: tensor for name, tensor in original.items() if name.startswith("backbone.")}
        if not any(name.startswith("backbone.") for name in without_prefix(weights.state, "module.")):
            original = without_prefix(backbone, "backbone.")
    return replace(weights, rest={**weights.rest, "original_state": original})


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
