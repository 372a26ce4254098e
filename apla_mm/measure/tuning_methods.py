"""Ways to fine-tune a backbone, to be compared: what trains in each, and how it is computed."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..method import adapt, find_projections
from ..method.recompute import set_recompute
from ..method.selection import random_channels, resolve_r


@dataclass(frozen=True)
class TuningMethod:
    """One way to fine-tune.

    Attributes:
        name: What tables call it.
        prepare: Changes a backbone, all of which trains, in place. Heads are no part of it.
        arguments: Those of :func:`~apla_mm.adapt` that a config would name for it, none for full fine-tuning; None
            if no config can ask for it.
    """

    name: str
    prepare: Callable[[nn.Module], object]
    arguments: Mapping[str, Any] | None = None


def tuning_methods(r: Sequence[int | float | str], recompute: Sequence[str]) -> list[TuningMethod]:
    """What a user would choose from, full fine-tuning first.

    Args:
        r: Channels of each projection, for APLA; the first also for the split projections.
        recompute: Modes of :func:`~apla_mm.method.recompute.set_recompute`, for APLA with the first ``r``.
    """
    return [
        TuningMethod("full fine-tuning", lambda backbone: None, {}),
        TuningMethod("all trains, checkpointed", checkpoint_blocks),
        TuningMethod("head only", lambda backbone: backbone.requires_grad_(False), dict(blocks="none")),
        TuningMethod("BitFit", train_biases),
        TuningMethod("LoRA r=8, qkv", partial(add_lora, r=8, only_qkv=True)),
        TuningMethod("LoRA r=8, all linear", partial(add_lora, r=8, only_qkv=False)),
        TuningMethod("W_O in full, as it is", train_projections),
        TuningMethod(f"W_O split, r={r[0]}", partial(split_projections, r=r[0])),
        TuningMethod("frozen, but for one bias", train_first_projection_bias),
        *(_apla(f"APLA r={x}", r=x) for x in r),
        *(_apla(f"APLA r={r[0]}, {m}", r=r[0], recompute=m) for m in recompute if m != "none"),
    ]


def _apla(name: str, **arguments: Any) -> TuningMethod:
    return TuningMethod(name, partial(adapt, **arguments), arguments)


def checkpoint_blocks(backbone: nn.Module) -> None:
    """Plain activation checkpointing: each block keeps its input, and is computed again in backward."""
    set_recompute(backbone, "block")


def train_biases(backbone: nn.Module) -> None:
    """BitFit (arXiv 2106.10199): biases alone train."""
    for name, parameter in backbone.named_parameters():
        if not name.endswith("bias"):
            parameter.requires_grad_(False)


def train_projections(backbone: nn.Module) -> None:
    """W_O alone trains, by ``requires_grad``, and no module is replaced: APLA's authors' way in segmentors."""
    backbone.requires_grad_(False)
    for projection in find_projections(backbone):
        projection.linear.requires_grad_(True)


def train_first_projection_bias(backbone: nn.Module) -> None:
    """The floor of any method that trains something in the first W_O: no gradient but of one bias, attention fused."""
    adapt(backbone, blocks="none")
    bias = find_projections(backbone)[0].linear.bias
    if bias is None:
        raise ValueError("the first projection has no bias")
    bias.requires_grad_(True)


def add_lora(backbone: nn.Module, r: int, only_qkv: bool) -> None:
    """LoRA (arXiv 2106.09685) as Hugging Face's peft does it, beside linear layers.

    Args:
        backbone: Changed in place.
        r: Rank.
        only_qkv: Beside those that make queries, keys and values, by their usual names; otherwise beside all.

    Raises:
        ImportError: peft is not installed.
        ValueError: There is no such layer, or its weight is used without calling it.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA is measured as peft does it, which is not installed: pip install peft") from error
    _check_projections_are_called(backbone)
    names = [name for name, module in backbone.named_modules() if isinstance(module, nn.Linear)]
    if only_qkv:
        names = [n for n in names if n.rpartition(".")[2] in ("qkv", "q_proj", "k_proj", "v_proj")]
    if not names:
        raise ValueError("no linear layer that makes queries, keys and values")
    device = next(backbone.parameters()).device
    fake = isinstance(next(backbone.parameters()), FakeTensor)
    # peft moves what it adds to the device of the layer, which fake tensors cannot do; `meta` it leaves alone
    with torch.device("meta") if fake else nullcontext():
        inject_adapter_in_model(LoraConfig(r=r, lora_alpha=r, target_modules=names), backbone)
    for module in backbone.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.device.type == "meta":
                module.register_parameter(name, nn.Parameter(torch.empty_like(parameter, device=device)))


def _check_projections_are_called(backbone: nn.Module) -> None:
    if any(isinstance(projection.attention, nn.MultiheadAttention) for projection in find_projections(backbone)):
        raise ValueError("nn.MultiheadAttention never calls its projection: nothing can be put in its place")


def split_projections(backbone: nn.Module, r: int | float | str) -> None:
    """Each W_O in two tensors, computed by two products whose outputs are scattered: APLA's authors' scheme.

    Raises:
        ValueError: A projection's weight is used without calling it.
    """
    _check_projections_are_called(backbone)
    backbone.requires_grad_(False)
    for p in find_projections(backbone):
        channels = random_channels(p.name, p.linear.out_features, resolve_r(r, p.linear.out_features, p.name), 0)
        backbone.set_submodule(p.name, _SplitLinear(p.linear, channels))


class _SplitLinear(nn.Module):
    """Linear layer with its trained and its frozen output channels in tensors of their own.

    Args:
        linear: The layer to split.
        channels: Output channels that train.
    """

    channels: Tensor
    channels_weight: Tensor
    channels_bias: Tensor | None
    others: Tensor
    others_weight: Tensor
    others_bias: Tensor | None

    def __init__(self, linear: nn.Linear, channels: Sequence[int]) -> None:
        super().__init__()
        others = sorted(set(range(linear.out_features)) - set(channels))
        for name, chosen, trains in (("channels", channels, True), ("others", others, False)):
            index = torch.tensor(list(chosen), dtype=torch.int64, device=linear.weight.device)
            self.register_buffer(name, index, persistent=False)
            for tensor, full in (("weight", linear.weight), ("bias", linear.bias)):
                rows = None if full is None else nn.Parameter(full.detach()[index], requires_grad=trains)
                self.register_parameter(f"{name}_{tensor}", rows)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer to x (..., in); returns (..., out)."""
        trained = F.linear(x, self.channels_weight, self.channels_bias)
        frozen = F.linear(x, self.others_weight, self.others_bias)
        y = trained.new_empty(*x.shape[:-1], len(self.channels) + len(self.others))
        return y.index_copy(-1, self.others, frozen).index_copy(-1, self.channels, trained)
