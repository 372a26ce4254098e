"""Ways to fine-tune a backbone, to be compared: those that a config can ask for, and a few that bound them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method import adapt, find_projections
from ..method.channels.selection import random_channels, resolve_r
from ..methods import TuningMethod, build_method, method_text
from ..methods.tuning_method import Merged


@dataclass(frozen=True)
class ComparedMethod:
    """A tuning method in a comparison.

    Attributes:
        name: What tables call it.
        method: What changes a backbone, all of which trains, in place. Heads are no part of it.
        key: What a config or a command line says for it, as in ``method=lora:r=8``; None if none can ask for it.
    """

    name: str
    method: TuningMethod
    key: str | None = None


def compared_methods(r: Sequence[int | float | str], recompute: Sequence[str]) -> list[ComparedMethod]:
    """What a user would choose from, full fine-tuning first.

    Args:
        r: Channels of each projection, for APLA; the first also for the split projections.
        recompute: Modes of :func:`~apla_mm.method.memory.recompute.set_recompute`, for APLA with the first ``r``.
    """
    return [
        _named("full fine-tuning", type="full"),
        _named("all trains, checkpointed", type="full", recompute="block"),
        _named("head only", type="head"),
        _named("BitFit", type="bitfit"),
        _named("LoRA r=8, qkv", type="lora", r=8),
        _named("LoRA r=8, all linear", type="lora", r=8, layers="all"),
        _named("W_O in full, as it is", type="wo"),
        ComparedMethod(f"W_O split, r={r[0]}", SplitProjections(r[0])),
        ComparedMethod("frozen, but for one bias", FirstBias()),
        *(_named(f"APLA r={x}", type="apla", r=x) for x in r),
        *(_named(f"APLA r={r[0]}, {m}", type="apla", r=r[0], recompute=m) for m in recompute if m != "none"),
    ]


def _named(name: str, **given: Any) -> ComparedMethod:
    return ComparedMethod(name, build_method(given), method_text(given))


@dataclass(frozen=True)
class FirstBias(Merged):
    """The floor of any method that trains something in the first W_O: no gradient but of one bias, attention fused."""

    def prepare(self, backbone: nn.Module) -> None:
        """Freeze all but the bias.

        Raises:
            ValueError: There is no such bias, or an unknown attention.
        """
        adapt(backbone, blocks="none")
        bias = find_projections(backbone)[0].linear.bias
        if bias is None:
            raise ValueError("the first projection has no bias")
        bias.requires_grad_(True)


@dataclass(frozen=True)
class SplitProjections:
    """Each W_O in two tensors, computed by two products whose outputs are scattered: APLA's authors' scheme.

    It is measured, and never trained: its state dict is not the plain one's.

    Args:
        r: Channels of each projection.
    """

    r: int | float | str

    def prepare(self, backbone: nn.Module) -> None:
        """Split the projections and freeze all but the channels.

        Raises:
            ValueError: A projection's weight is used without calling it.
        """
        found = find_projections(backbone)
        if any(isinstance(projection.attention, nn.MultiheadAttention) for projection in found):
            raise ValueError("nn.MultiheadAttention never calls its projection: nothing can be put in its place")
        backbone.requires_grad_(False)
        for p in found:
            count = resolve_r(self.r, p.linear.out_features, p.name)
            channels = random_channels(p.name, p.linear.out_features, count, 0)
            backbone.set_submodule(p.name, _SplitLinear(p.linear, channels))

    def merge(self, backbone: nn.Module) -> None:
        """Refused.

        Raises:
            NotImplementedError: Always.
        """
        raise NotImplementedError("split projections are measured, and never trained")


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
