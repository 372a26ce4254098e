"""Arithmetic of sizes that are ints, or tensors while a model is traced."""

from typing import Any

import torch
from torch import Tensor


def larger(a: Any, b: Any) -> Any:
    """The larger of two."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.maximum(torch.as_tensor(a), torch.as_tensor(b))
    return max(a, b)


def smaller(a: Any, b: Any) -> Any:
    """The smaller of two."""
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return torch.minimum(torch.as_tensor(a), torch.as_tensor(b))
    return min(a, b)
