"""Work done again in backward instead of kept: less memory for a little time, with the same gradients."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from ...text import quoted
from ..attention.fused import fused_kind
from ..class_change import Changed, change, change_back
from ..projections import find_attentions
from .still_buffers import StillBuffers

MODES = ("none", "mlp", "linear", "block")


class _Recomputed(Changed):
    """Keeps its inputs alone; what its forward computes in between is computed again in backward."""

    #: gives what is around the forward, and around the one in backward; None for nothing
    _contexts: Callable[[], tuple[Any, Any]] | None = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return super().forward(*args, **kwargs)
        if torch.compiler.is_compiling():  # whose graphs move running statistics once
            options: Any = dict(context_fn=self._contexts) if self._contexts else {}
            return checkpoint(super().forward, *args, use_reentrant=False, **options, **kwargs)
        source = _source_of(args[0]) if args else None
        contexts = partial(_standing_still, self, self._contexts)
        if source is None:
            return checkpoint(super().forward, *args, use_reentrant=False, context_fn=contexts, **kwargs)
        # A norm keeps its own input for backward, and its output is soon made again from it.
        norm, x = source
        first = list(args[:1])

        def forward(*rest: Any) -> Any:
            if first:
                y = first.pop()
            else:
                with torch.no_grad():
                    y = norm(x).requires_grad_()
            return super(_Recomputed, self).forward(y, *rest, **kwargs)

        return checkpoint(forward, *args[1:], use_reentrant=False, context_fn=contexts)


def _source_of(y: Any) -> tuple[nn.Module, Tensor] | None:
    """The norm that gave a tensor, and its input; None if there is none, or the tensor was written to since."""
    source: Any = getattr(y, "_normalised_from", None)
    if source is None:
        return None
    norm, x, version = source
    return (norm, x) if y._version == version else None


def _standing_still(module: nn.Module, contexts: Callable[[], tuple[Any, Any]] | None) -> tuple[Any, Any]:
    first, again = contexts() if contexts else (nullcontext(), nullcontext())
    return first, StillBuffers(module, again)


def draws_random_numbers(operator: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether an operator is a fused attention that draws random numbers: kept, those after it would be others."""
    names = [argument.name for argument in operator._schema.arguments]
    return "dropout_p" in names and bool({**dict(zip(names, args, strict=False)), **kwargs}.get("dropout_p"))


def _keep_attention(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    """Keeps the outputs of the fused attention kernels, unless they draw random numbers: those are drawn again."""
    attends = operator._schema.name.startswith("aten::_scaled_dot_product")
    if attends and not draws_random_numbers(operator, args, kwargs):
        return CheckpointPolicy.MUST_SAVE
    return CheckpointPolicy.PREFER_RECOMPUTE


class _RecomputedButAttention(_Recomputed):
    """Keeps its inputs and the outputs of its attention."""

    _contexts = partial(create_selective_checkpoint_contexts, _keep_attention)


class _RememberedNorm(Changed):
    """Records with its output what it was computed from."""

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if torch.is_grad_enabled() and x.requires_grad and not torch.compiler.is_compiling():
            y._normalised_from = (self, x, y._version)
        return y


def set_recompute(model: nn.Module, mode: str) -> None:
    """Choose what a transformer's blocks compute again in backward, in place; an earlier choice is undone.

    Modules stay where and what they are, but for their forward: the state dict does not change. Random numbers and
    autocast are the same the second time, so gradients are those of ``'none'``; running statistics move once.

    Args:
        model: Any module with attention of a known kind.
        mode: ``'none'`` keeps everything; ``'mlp'`` computes each block's MLP again, and the norm before it;
            ``'linear'`` computes blocks again but for the attention, and keeps their inputs and the attention's
            output, where that comes from ``scaled_dot_product_attention`` without dropout, otherwise it is
            ``'block'``; ``'block'`` computes whole blocks again and keeps their inputs.

    Raises:
        ValueError: There is no such mode, or no blocks or MLPs of a known structure.
    """
    if mode not in MODES:
        raise ValueError(f"recompute={mode!r} must be one of {', '.join(map(repr, MODES))}")
    blocks = {} if mode == "none" else blocks_of(model)
    mlps = {name: list(_mlps(block, inner)) for name, (block, inner) in blocks.items()} if mode == "mlp" else {}
    without = [name for name, found in mlps.items() if not found]
    if without:
        raise ValueError(f"recompute='mlp': no MLP was found beside the attention in '{without[0]}'; use 'block'")
    reset_recompute(model)
    for name, (block, inner) in blocks.items():
        if mode != "mlp":
            change(block, _Recomputed if mode == "block" else _RecomputedButAttention)
            continue
        for mlp in mlps[name]:
            change(mlp, _Recomputed)
        for child in block.children():
            if child is not inner and isinstance(child, nn.LayerNorm):
                change(child, _RememberedNorm)


def reset_recompute(model: nn.Module) -> None:
    """Keep everything for backward again."""
    for module in model.modules():
        if isinstance(module, _Recomputed | _RememberedNorm):
            change_back(module)


def blocks_of(model: nn.Module) -> dict[str, tuple[nn.Module, nn.Module]]:
    """The transformer blocks of a model: what holds an attention and is itself an element of a list or sequence.

    Args:
        model: A model, adapted or not.

    Returns:
        The blocks by name, each with its child that holds the attention.

    Raises:
        ValueError: No attention is in a block.
    """
    names = {module: name for name, module in model.named_modules()}
    blocks = {}
    for projection in find_attentions(model):
        path, holder = names[projection.attention], projection.attention
        inner = holder
        while path:
            above = model.get_submodule(path.rpartition(".")[0])
            # an attention that is an element itself is a block, as a parallel one of timm, unless it is replaced
            whole = holder is not projection.attention or not _is_replaced(holder)
            if isinstance(above, nn.ModuleList | nn.Sequential) and whole:
                blocks[path] = (holder, inner)
                break
            path, inner, holder = path.rpartition(".")[0], holder, above
    if not blocks:
        attentions = quoted(names[p.attention] for p in find_attentions(model))
        raise ValueError(f"recompute: no block, an element of a list, holds {attentions}")
    return blocks


def _is_replaced(attention: nn.Module) -> bool:
    return isinstance(attention, nn.MultiheadAttention | Changed) or fused_kind(attention) is not None


def _mlps(block: nn.Module, inner: nn.Module) -> Iterator[nn.Module]:
    for child in block.children():
        layers = sum(isinstance(module, nn.Linear | nn.Conv2d) for module in child.modules())
        if child is not inner and layers >= 2:
            yield child
