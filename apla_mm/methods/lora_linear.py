"""A linear layer with a product of low rank beside it."""

import hashlib
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..method.class_change import Changed, change


class LowRank(nn.Module):
    """What trains of a :class:`LoRALinear`. A state dict knows nothing of this module.

    Attributes:
        a: (r, in).
        b: (out, r), zeros at first.
    """

    def __init__(self, linear: nn.Linear, r: int, seed: str) -> None:
        super().__init__()
        weight = linear.weight.detach()
        self.a = nn.Parameter(weight.new_empty(r, linear.in_features))
        self.b = nn.Parameter(weight.new_zeros(linear.out_features, r))
        # a generator of its own: other random numbers stay as they are, and all processes draw the same
        generator = torch.Generator().manual_seed(int.from_bytes(hashlib.sha256(seed.encode()).digest()[:7], "big"))
        bound = 1 / math.sqrt(linear.in_features)
        drawn = torch.empty(r, linear.in_features, dtype=weight.dtype).uniform_(-bound, bound, generator=generator)
        with torch.no_grad():
            self.a.copy_(drawn)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        pass

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        pass


class LoRALinear(Changed, nn.Linear):
    """A frozen linear layer beside which a product of low rank trains (LoRA, arXiv 2106.09685, section 4.1).

    In training it computes ``y = x W^T + b + scale * (x A^T) B^T``, as Hugging Face's peft does without dropout. In
    evaluation it computes ``y = x (W + scale * B A)^T + b``: what the plain layer does with what is saved, to the bit.

    ``weight`` (out, in) and ``bias`` (out,) stay where they are, frozen; a state dict has ``W + scale * B A`` as
    ``weight``. A weight that is loaded becomes W, and B becomes zero: the layer is then the one that was loaded.

    A plain layer becomes one by :meth:`of`, in place. (peft's layers stand around the plain one, whose keys become
    ``base_layer.weight``; each loader that walks modules, mmengine's among them, would need them renamed.)
    """

    lora: LowRank
    scale: float

    @classmethod
    def of(cls, linear: nn.Linear, r: int, scale: float, seed: str) -> "LoRALinear":
        """Freeze a plain layer and let a product of low rank train beside it, in place.

        Args:
            linear: The layer.
            r: The product's rank.
            scale: What the product is multiplied by.
            seed: Any text, from which A is drawn, uniform in +-1/sqrt(in) as peft does.

        Returns:
            The same layer.
        """
        lora = LowRank(linear, r, seed).train(linear.training)
        for tensor in linear._parameters.values():
            if tensor is not None:
                tensor.requires_grad_(False)
        layer = change(linear, cls)
        layer.lora, layer.scale = lora, scale
        return layer

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer.

        Args:
            x: (..., in).

        Returns:
            (..., out).
        """
        if not self.training:
            return F.linear(x, self.merged_weight(), self.bias)
        y: Tensor = super().forward(x)
        return y + F.linear(F.linear(x, self.lora.a), self.lora.b) * self.scale

    def merged_weight(self) -> Tensor:
        """``W + scale * B A``, (out, in), in the weight's precision under autocast too."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return self.weight + (self.lora.b @ self.lora.a) * self.scale

    def extra_repr(self) -> str:
        """The plain layer's, and the rank."""
        return f"{super().extra_repr()}, r={len(self.lora.a)}"

    def _before_change_back(self) -> None:
        if self.lora.b.any():
            self.weight.data.copy_(self.merged_weight().detach())
        del self.lora, self.scale

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.lora.b.any():  # else it is the weight itself, minus zeros and all
            with torch.no_grad():
                destination[f"{prefix}weight"] = self.merged_weight()

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        for tensor in self._parameters.values():
            if tensor is not None:
                tensor.requires_grad_(False)
        if f"{prefix}weight" in state_dict:
            with torch.no_grad():
                self.lora.b.zero_()
