"""LoRA beside chosen linear layers of a backbone."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import torch
from torch import nn

from ..method.attention.recognition import reads_weight_of
from ..method.memory.recompute import set_recompute
from ..text import first_few, quoted
from .lora_linear import LoRALinear
from .tuning_method import Merged, check_plain

#: what layers that make queries, keys and values are called
_QKV = ("qkv", "q_proj", "k_proj", "v_proj", "q", "kv", "query", "key", "value")


@dataclass(frozen=True)
class LoRA(Merged):
    """LoRA (arXiv 2106.09685): beside frozen linear layers products of rank ``r`` train, ``alpha / r * B A``.

    Args:
        r: The rank.
        alpha: The product's factor times the rank; ``r`` by default, for a factor of 1.
        layers: ``'qkv'``, the layers that make queries, keys and values, by their usual names; ``'all'``; or names,
            ends of names or shell-style patterns of names: ``['attn.proj', '*.mlp.*']``. Layers that the backbone has
            frozen itself stay as they are.
        seed: Draws A, together with each layer's name.
        recompute: What blocks compute again in backward; see :func:`~apla_mm.method.memory.recompute.set_recompute`.
    """

    r: int = 8
    alpha: float | None = None
    layers: str | Sequence[str] = "qkv"
    seed: int = 0
    recompute: str = "none"

    def prepare(self, backbone: nn.Module) -> None:
        """Put LoRA beside the layers and freeze all else.

        Raises:
            ValueError: The backbone has no such layers, or uses their weights without calling them, or the rank does
                not fit them.
        """
        check_plain(backbone)
        if self.alpha is not None and (type(self.alpha) not in (int, float) or not 0 < self.alpha < float("inf")):
            raise ValueError(f"lora: alpha={self.alpha!r} must be a number above 0")
        names = self._targets(backbone)
        set_recompute(backbone, self.recompute)  # the last that may refuse
        backbone.requires_grad_(False)
        scale = (self.r if self.alpha is None else self.alpha) / self.r
        for name in names:
            layer = backbone.get_submodule(name)
            assert isinstance(layer, nn.Linear)
            LoRALinear.of(layer, self.r, scale, f"{self.seed}:{name}")

    def _targets(self, backbone: nn.Module) -> list[str]:
        linears = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Linear)}
        names = _chosen(self.layers, list(linears))
        multihead = [n for n, module in backbone.named_modules() if isinstance(module, nn.MultiheadAttention)]
        of_multihead = [name for name in linears if name.rpartition(".")[0] in multihead]
        told = f"there are {_ends(set(linears) - set(of_multihead))}"
        if (multihead and not names) or set(names) & set(of_multihead):
            raise ValueError(
                f"lora: '{multihead[0]}' is an nn.MultiheadAttention, which never calls its projection and holds no "
                f"layer that makes queries, keys and values: nothing can stand beside them. Name other layers, as in "
                f"layers=[...]: {told}"
            )
        if not names:
            raise ValueError(
                f"lora: {type(backbone).__name__} has no linear layer of layers={self.layers!r} (qkv are those called "
                f"{', '.join(_QKV)}): {told}"
            )
        chosen = [name for name in names if linears[name].weight.requires_grad]
        if not chosen:
            raise ValueError(
                f"lora: {type(backbone).__name__} has frozen itself all of the layers of layers={self.layers!r}, "
                f"{quoted(names, 3)}: build it without frozen parameters"
            )
        uses = Counter(id(p) for m in backbone.modules() for p in m.parameters(recurse=False))
        for name in chosen:
            if problem := self._problem(backbone, name, linears[name], uses):
                raise ValueError(f"lora: the layer '{name}' {problem}; leave it out by layers=[...]: {told}")
        return chosen

    def _problem(self, backbone: nn.Module, name: str, layer: nn.Linear, uses: Counter[int]) -> str:
        """Why LoRA cannot stand beside a layer; empty if it can."""
        parent, _, leaf = name.rpartition(".")
        if type(self.r) is not int or not 1 <= self.r <= min(layer.in_features, layer.out_features):
            return f"is of {layer.out_features} x {layer.in_features}, and r={self.r!r} is no rank below that"
        if layer.weight.dtype not in (torch.float32, torch.float64):
            return f"holds {layer.weight.dtype}: what trains is merged into float32 weights alone"
        if reads_weight_of(backbone.get_submodule(parent), leaf):
            return "is not called, its weight is used by itself: what stands beside it would get no gradient"
        if uses[id(layer.weight)] > 1:
            return "shares its weight with another module: what is merged into it would change both"
        return ""


def _chosen(layers: str | Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that ``layers`` asks for; a pattern that matches none is an error."""
    if layers == "all":
        return list(names)
    if layers == "qkv":
        return [name for name in names if name.rpartition(".")[2] in _QKV]
    patterns = [layers] if isinstance(layers, str) else list(layers)
    hits = {p: [n for n in names if fnmatchcase(n, p) or f".{n}".endswith(f".{p}")] for p in patterns}
    for pattern, found in hits.items():
        if not found:
            raise ValueError(
                f"lora: layers={layers!r}: no linear layer is called '{pattern}'; there are {_ends(names)}; 'qkv' and "
                "'all' choose by kind"
            )
    return [name for name in names if any(name in found for found in hits.values())]


def _ends(names: Sequence[str] | set[str]) -> str:
    """The last two steps of names, each once: what the layers of a block are called."""
    return first_few(sorted({".".join(name.split(".")[-2:]) for name in names})) or "none"
