"""Turn a plain model into one that trains by APLA, and back."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import UninitializedParameter

from .attention.encoder_layer import call_attentions
from .attention.fused import fused_kind
from .attention.multihead import ProjectedMultiheadAttention, check_multihead
from .blocks import choose_blocks
from .channels.scores import row_norms
from .channels.selection import (
    ChannelLists,
    Selection,
    by_projection,
    listed_channels,
    load_channels,
    random_channels,
    resolve_r,
    top_channels,
)
from .class_change import Changed, change, change_back
from .memory.frozen_dtype import check_frozen_dtype, hold_frozen, release_frozen
from .memory.recompute import set_recompute
from .partial_linear import PartialLinear
from .projections import Attentions, Projection, also_known, attention_names, each_once, find_attentions
from .report import AdaptedProjection, Report
from .wrappers import is_wrapper, unwrapped


def adapt(
    model: nn.Module,
    r: int | float | str | None = None,
    *,
    seed: int | None = None,
    selection: str | Mapping[str, Any] = "random",
    channels: ChannelLists | str | Path | None = None,
    blocks: str | int | Sequence[int] = "all",
    trainable: Sequence[str] = (),
    recompute: str = "none",
    attentions: Attentions | None = None,
    frozen_dtype: str = "float32",
) -> Report:
    """Adapt a model in place: of all its parameters only the chosen channels of its projections train from now on.

    The state dict keeps the plain model's keys, shapes and dtypes. Adapting an adapted model again in the same way
    changes nothing.

    Args:
        model: Any module with attention of a known kind (see :func:`~.projections.register_attention`). What pools by
            attention, as SigLIP's head does, counts as one: its projection is right after attention too.
        r: How many output channels of each projection train: an int, a fraction of them, or ``'full'``, which is the
            default.
        seed: Draws the channels, together with each projection's name; 0 by default.
        selection: ``'random'``, or ``'magnitude'`` for the rows of W_O with the largest norms in the weights that are
            there. By data, :func:`~.channels.select.select_channels` gives lists for ``channels``.
        channels: The channels of each projection by name instead, or a JSON file of them; ``block_0`` and so on, as in
            the files of the paper's authors, mean the blocks' projections.
        blocks: Which attentions are adapted: ``'all'``, the last k (an int), a list of positions in the model's order,
            or ``'none'``, for a model of which only ``trainable`` trains.
        trainable: Shell-style patterns of names of further parameters that train, such as ``'head.*'``. Of a
            projection the chosen channels train and no others, whatever matches it.
        recompute: What blocks compute again in backward instead of keeping it: ``'none'``, ``'mlp'``, ``'linear'`` or
            ``'block'``; see :func:`~.memory.recompute.set_recompute`.
        attentions: Further kinds of attention, for this call alone: ``{'package.module.Class': 'path.of.projection'}``.
            They win over what is known. A path of None leaves modules of that class frozen.
        frozen_dtype: What frozen weights of linear layers and convolutions are held in on the device: ``'bfloat16'``
            for training under bfloat16 autocast, with the same outputs and gradients; see
            :func:`~.memory.frozen_dtype.hold_frozen`. ``'float32'`` leaves them alone.

    Returns:
        The report.

    Raises:
        ValueError: Any of the above does not fit the model, or the model was adapted otherwise before. The model is
            as it was.
    """
    if unwrapped(model) is not model:
        then = "wrap" if is_wrapper(model) else "compile"
        raise ValueError(f"the model is wrapped in {type(model).__name__} already: adapt it first, then {then} it")
    how = Selection.of(selection)
    how.check_read(r=r, seed=seed, channels=channels, blocks=blocks)
    if how.reads_data:
        raise ValueError(
            f"selection='{how.type}' reads batches of training data, which adapt has not: "
            f"channels=apla_mm.select_channels(model, r, '{how.type}', batches, loss); in an OpenMMLab run "
            f"APLAHook(r=..., selection='{how.type}'), or apla=dict(...) of APLAViT, does it"
        )
    found = find_attentions(model, attentions)
    arguments: dict[str, Any] = dict(
        r=r, seed=seed or 0, channels=channels, blocks=blocks, trainable=list(trainable), recompute=recompute
    )
    arguments |= dict(seed=None, selection=how.type) if how.type != "random" else {}
    arguments |= dict(attentions=attention_names(attentions)) if attentions else {}
    arguments |= dict(frozen_dtype=frozen_dtype) if frozen_dtype != "float32" else {}
    check_frozen_dtype(frozen_dtype)
    projections = choose_blocks(each_once(found), blocks)
    plan = _choose_channels(projections, r, seed or 0, how, channels)
    adapted_before = [name for name, module in model.named_modules() if isinstance(module, PartialLinear)]
    if adapted_before:
        _check_adapted_alike(projections, plan, adapted_before)
    further = _match(trainable, model)
    for projection, chosen in zip(projections, plan, strict=True):
        _check_can_train(projection, len(chosen) == projection.linear.out_features)
    partly = [p for p, chosen in zip(projections, plan, strict=True) if len(chosen) < p.linear.out_features]
    _check_own_tensors(partly, model)
    for one in found:
        if isinstance(one.attention, nn.MultiheadAttention):
            check_multihead(one.attention)
    with also_known(attentions):
        set_recompute(model, recompute)  # the last that may refuse; from here on the model changes

    release_frozen(model)
    known = {p.attention: p for p in found}
    replaced = tuple(name for name, module in model.named_modules() if module in known and _fuse(known[module]))
    call_attentions(model)
    model.requires_grad_(False)
    for projection, chosen in zip(projections, plan, strict=True):
        linear = projection.linear
        if len(chosen) == linear.out_features:
            linear.requires_grad_(True)
        elif isinstance(linear, PartialLinear):
            linear.trained.requires_grad_(True)
        else:
            PartialLinear.of(linear, chosen)
    own = {id(parameter) for p in partly for parameter in p.linear.parameters(recurse=False)}
    for name in further:
        parameter = model.get_parameter(name)
        parameter.requires_grad_(parameter.requires_grad or id(parameter) not in own)

    done = (
        AdaptedProjection(p.name, p.linear.out_features, p.linear.in_features, tuple(chosen))
        for p, chosen in zip(projections, plan, strict=True)
    )
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    held = hold_frozen(model, frozen_dtype)
    return Report(arguments, tuple(done), trained, count_parameters(model), replaced, tuple(held))


def merge(model: nn.Module) -> nn.Module:
    """Turn an adapted model into the plain one again, in place, with what was trained in its weights.

    Args:
        model: An adapted model. A plain one is left unchanged.

    Returns:
        The model.
    """
    for module in list(model.modules()):
        change_back(module)
    return model


def count_parameters(model: nn.Module) -> int:
    """Parameters of the plain model: the rows that an adapted layer trains are part of its weight."""
    twice = sum(
        p.numel() for m in model.modules() if isinstance(m, PartialLinear) for p in m.trained.parameters(recurse=False)
    )
    return sum(p.numel() for p in model.parameters()) - twice


def _fuse(projection: Projection) -> bool:
    """Have an attention that keeps N x N matrices compute without; gives whether it is such a one, and did not yet."""
    attention = projection.attention
    if isinstance(attention, Changed):
        return False
    if isinstance(attention, nn.MultiheadAttention):
        ProjectedMultiheadAttention.of(attention, projection.weights_are_used)
    elif (kind := fused_kind(attention)) is not None:
        change(attention, kind)
    return isinstance(attention, Changed)


def _choose_channels(
    projections: list[Projection],
    r: int | float | str | None,
    seed: int,
    how: Selection,
    channels: ChannelLists | str | Path | None,
) -> list[list[int]]:
    if channels is None:
        counts = [resolve_r("full" if r is None else r, p.linear.out_features, p.name) for p in projections]
        for p in projections if how.type == "magnitude" else ():
            _check_can_train(p, whole=True)  # it has weights
            if p.linear.weight.is_meta:
                raise ValueError(
                    f"projection '{p.name}' is on the meta device, and has no values of which selection='magnitude' "
                    "could take the largest: adapt the model once it has them"
                )
        return [
            random_channels(p.name, p.linear.out_features, count, seed)
            if how.type == "random"
            else top_channels(row_norms(p.linear), count, p.name)
            for p, count in zip(projections, counts, strict=True)
        ]
    if r is not None:
        raise ValueError(f"r={r!r} and channels are given, but the lists of channels say how many train: leave r out")
    lists = by_projection(load_channels(channels), [p.name for p in projections])
    unknown = sorted(set(lists) - {p.name for p in projections})
    if unknown:
        raise ValueError(f"channels are listed for {unknown}, but the projections are {[p.name for p in projections]}")
    return [listed_channels(lists, p.name, p.linear.out_features) for p in projections]


def _check_adapted_alike(projections: list[Projection], plan: list[list[int]], adapted: Iterable[str]) -> None:
    planned = {p.name: chosen for p, chosen in zip(projections, plan, strict=True)}
    for p in projections:
        before = list(p.linear.trained.chosen) if isinstance(p.linear, PartialLinear) else None
        full = len(planned[p.name]) == p.linear.out_features
        if before != planned[p.name] and not (before is None and full):
            raise ValueError(f"'{p.name}' was adapted otherwise before: call apla_mm.merge(model) first")
    left_over = set(adapted) - set(planned)
    if left_over:
        raise ValueError(f"{sorted(left_over)} were adapted before and are not now: call apla_mm.merge(model) first")


def _check_can_train(projection: Projection, whole: bool) -> None:
    linear, problem = projection.linear, ""
    weight = linear.weight
    if isinstance(weight, UninitializedParameter):
        problem = "is a lazy layer without values: run the model once"
    elif hasattr(weight, "full_tensor"):
        problem = "is a shard of FSDP2, into which nothing could be merged: adapt the model before it is sharded"
    elif (
        not whole
        and projection.linear._parameters.get("weight") is None
        and not isinstance(projection.linear, PartialLinear)
    ):
        problem = (
            "has a weight that is computed from others (pruned, or under weight or spectral norm), so that rows of it "
            "cannot be trained: make it a plain one first (prune.remove, remove_parametrizations), or train it by "
            "r='full'"
        )
    elif not weight.is_floating_point():
        problem = f"holds {weight.dtype}, for which there are no gradients: adapt the model before it is quantized"
    if problem:
        raise ValueError(f"projection '{projection.name}' {problem}")


def _check_own_tensors(projections: list[Projection], model: nn.Module) -> None:
    """A tensor of two layers gets the gradients of both, and rows beside one of them those of that one."""
    places: dict[int, list[tuple[str, nn.Module]]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            places.setdefault(id(parameter), []).append((name, module))
    for projection in projections:
        for kind, parameter in projection.linear.named_parameters(recurse=False):
            others = [name for name, module in places[id(parameter)] if module is not projection.linear]
            if others:
                raise ValueError(
                    f"projection '{projection.name}' shares its {kind} with '{others[0]}', and of a shared {kind} rows "
                    "cannot train by themselves: give each layer its own, use r='full', or leave it out by blocks=[...]"
                )


def _match(patterns: Sequence[str], model: nn.Module) -> list[str]:
    """Names of parameters that any of the patterns matches; a pattern that matches none is an error."""
    if isinstance(patterns, str):
        raise ValueError(f"trainable={patterns!r} must be a list of patterns")
    parameters = dict(model.named_parameters())
    names = list(parameters)
    matched = {pattern: [name for name in names if fnmatchcase(name, pattern)] for pattern in patterns}
    for pattern, hits in matched.items():
        if not hits:
            raise ValueError(f"trainable pattern '{pattern}' matches no parameter; names look like {names[:3]}")
        if whole := [name for name in hits if not parameters[name].is_floating_point()]:
            raise ValueError(
                f"trainable pattern '{pattern}' matches '{whole[0]}', of {parameters[whole[0]].dtype}, for which there "
                "are no gradients"
            )
    return [name for hits in matched.values() for name in hits]
