import copy
import threading
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import apla_mm
from apla_mm.delta import Delta, extract_delta


class Net(nn.Module):
    """A ViT, a norm that has statistics, and a head."""

    def __init__(self, backbone: nn.Module | None = None, classes: int = 5) -> None:
        super().__init__()
        self.backbone = backbone or timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
        )
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.backbone(x)))


def _train(model: nn.Module, steps: int = 3, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32, generator=generator)).square().sum().backward()
        optimizer.step()
    model.eval()


def _trained_from(base: nn.Module, seed: int, **adapt: Any) -> nn.Module:
    model = copy.deepcopy(base)
    apla_mm.adapt(model, **{"r": 3, "seed": seed, "trainable": ["norm.*", "head.*"], **adapt})
    _train(model, seed=seed)
    return model


def _clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def _take_turns(work: list[Callable[[], None]], rounds: int) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(one: Callable[[], None]) -> None:
        try:
            start.wait(30)
            for _ in range(rounds):
                one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.fixture
def make_net() -> Callable[..., nn.Module]:
    return Net


@pytest.fixture
def train() -> Callable[..., None]:
    """A few steps of an optimizer."""
    return _train


@pytest.fixture
def trained_from() -> Callable[..., nn.Module]:
    """Makes a copy of a model that was adapted and trained with its norm and head."""
    return _trained_from


@pytest.fixture
def clone() -> Callable[[nn.Module], dict[str, Tensor]]:
    """Copies a model's state dict."""
    return _clone


@pytest.fixture
def take_turns() -> Callable[..., None]:
    """Calls functions in a thread each, all at once and again and again; raises their first error."""
    return _take_turns


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def base() -> nn.Module:
    return Net().eval()


@pytest.fixture
def tasks(base: nn.Module, images: Tensor) -> tuple[list[Delta], list[dict[str, Tensor]], list[Tensor]]:
    """Of two tasks, trained on other channels: the deltas, and states and outputs of models of their own."""
    models = [_trained_from(base, seed, **more) for seed, more in ((1, {}), (2, {"r": 5}))]
    with torch.no_grad():
        outputs = [apla_mm.merge(copy.deepcopy(model))(images) for model in models]
    assert not torch.equal(*outputs)
    return [extract_delta(model) for model in models], [_clone(model) for model in models], outputs


@pytest.fixture
def two_models(base: nn.Module) -> tuple[list[nn.Module], list[Delta], list[nn.Module]]:
    """Two models that share a backbone, with heads of 5 and 7 classes, deltas for them, and models of their own."""
    own = [Net(copy.deepcopy(base.backbone), classes).eval() for classes in (5, 7)]
    own = [_trained_from(model, seed) for seed, model in enumerate(own)]
    return [Net(base.backbone, classes).eval() for classes in (5, 7)], [extract_delta(model) for model in own], own


def _adapted(model: nn.Module) -> nn.Module:
    apla_mm.adapt(model, r=3, seed=1, trainable=["head.*"])
    return model


def _adapted_otherwise(model: nn.Module) -> nn.Module:
    apla_mm.adapt(model, r=9, seed=5, recompute="block")
    return model


_KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "adapted": _adapted,
    "adapted otherwise": _adapted_otherwise,
    "compiled": lambda model: torch.compile(model, backend="aot_eager"),
    "adapted and compiled": lambda model: torch.compile(_adapted(model), backend="aot_eager"),
}


@pytest.fixture
def as_kind() -> Callable[[str, nn.Module], nn.Module]:
    """Makes a model plain, adapted, compiled, or several of these."""
    return lambda kind, model: _KINDS[kind](model)
