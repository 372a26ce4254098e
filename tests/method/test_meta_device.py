"""Models that are adapted before they have values."""

import copy
from collections.abc import Callable

import pytest
import torch
from helpers.comparisons import assert_same
from helpers.nets import tiny_vit
from torch import nn

from apla_mm.method import PartialLinear, adapt, merge
from apla_mm.method.channels.trained import channels_of


def by_loading(model: nn.Module, values: nn.Module) -> None:
    model.load_state_dict(values.state_dict())


def in_place(model: nn.Module, values: nn.Module) -> None:
    state = values.state_dict()
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if name in state:
            tensor.data.copy_(state[name])


@pytest.mark.parametrize("fill", [by_loading, in_place])
@pytest.mark.parametrize("garbage", [float("nan"), 7.0])
def test_a_model_of_the_meta_device_trains_as_one_that_had_values(
    fill: Callable[[nn.Module, nn.Module], None], garbage: float
) -> None:
    torch.manual_seed(0)
    plain = tiny_vit()
    right, empty = copy.deepcopy(plain), copy.deepcopy(plain).to("meta")
    assert str(adapt(right, r=3)) == str(adapt(empty, r=3))
    adapt(empty, r=3)  # again changes nothing
    assert channels_of(empty) == channels_of(right)
    model = empty.to_empty(device="cpu")
    for module in model.modules():
        for tensor in [*module.parameters(recurse=False), *module.buffers(recurse=False)]:
            if tensor.is_floating_point():  # memory holds anything
                tensor.data.fill_(garbage)
    fill(model, plain)
    x = torch.randn(2, 3, 32, 32)
    for one in (right, model):
        one(x).square().mean().backward()
        for module in one.modules():
            if isinstance(module, PartialLinear):
                module.trained.weight.data -= module.trained.weight.grad
    assert channels_of(model) == channels_of(right)
    assert_same(merge(model).state_dict(), merge(right).state_dict())
