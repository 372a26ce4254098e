import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.nets import TinyNet
from torch import nn

import apla_mm


def _train(model: nn.Module, steps: int = 2) -> None:
    model.train()
    tensor = next(model.parameters())
    x, y = torch.randn(4, 3, 32, 32, dtype=tensor.dtype), torch.randint(5, (4,))
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, momentum=0.9)
    for _ in range(steps):
        loss = nn.functional.cross_entropy(model(x).float(), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


@pytest.fixture
def train() -> Callable[..., None]:
    return _train


@pytest.fixture
def make_pair() -> Callable[..., tuple[nn.Module, nn.Module]]:
    """A base, and a copy of it that was adapted and trained with its norm and head."""

    def make(dtype: torch.dtype = torch.float32, steps: int = 2, **adapt: Any) -> tuple[nn.Module, nn.Module]:
        base = TinyNet().to(dtype)
        trained = copy.deepcopy(base)
        apla_mm.adapt(trained, **{"r": 3, "trainable": ["norm.*", "head.*"], **adapt})
        _train(trained, steps)
        return base, trained

    return make
