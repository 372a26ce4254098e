import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import apla_mm


class Net(nn.Module):
    """A ViT with a norm that has statistics, and a head."""

    def __init__(self, embed_dim: int = 32, classes: int = 5, **kwargs: Any) -> None:
        super().__init__()
        self.vit = timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=embed_dim, depth=2, num_heads=2, num_classes=0, **kwargs
        )
        self.norm = nn.BatchNorm1d(embed_dim)
        self.head = nn.Linear(embed_dim, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.vit(x)))


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
        base = Net().to(dtype)
        trained = copy.deepcopy(base)
        apla_mm.adapt(trained, **{"r": 3, "trainable": ["norm.*", "head.*"], **adapt})
        _train(trained, steps)
        return base, trained

    return make
