import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


def test_bfloat16_on_the_cpu_steps_like_autocast():
    torch.manual_seed(0)
    model, reference = nn.Linear(4, 4), nn.Linear(4, 4)
    reference.load_state_dict(model.state_dict())
    x = torch.randn(3, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(dict(type="BFloat16OptimWrapper", optimizer=optimizer))
    with wrapper.optim_context(model):
        y = model(x)
    assert y.dtype == torch.bfloat16
    assert model(x).dtype == torch.float32
    wrapper.update_params(y.float().square().mean())

    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = reference(x)
    y.float().square().mean().backward()
    for p, q in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(p, q - 0.1 * q.grad)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 2)

    def forward(self, x):
        maps = self.backbone(x)
        return maps, self.head(maps)


def test_parts_alone_compute_in_bfloat16_and_give_float32():
    model = Detector()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type="BFloat16OptimWrapper", optimizer=optimizer, parts=["backbone", "neck"], accumulative_counts=2)
    )
    x = torch.randn(3, 4)
    with wrapper.optim_context(model):
        maps, scores = model(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model.backbone(x)
    assert maps.dtype == scores.dtype == torch.float32
    assert torch.equal(maps, expected.float())
    assert torch.equal(scores, model.head(maps))
    wrapper.update_params(scores.square().mean())
    assert model.backbone.weight.grad is not None and wrapper._accumulative_counts == 2
    assert torch.equal(model(x)[0], model.backbone(x)) and not torch.equal(model(x)[0], maps)


def test_a_tuple_of_maps_is_given_in_float32_too():
    class Backbone(nn.Linear):
        def forward(self, x):
            y = super().forward(x)
            return y, 2 * y

    model = nn.Module()
    model.backbone = Backbone(4, 4)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type="BFloat16OptimWrapper", optimizer=torch.optim.SGD(model.parameters(), lr=0.1), parts=["backbone"])
    )
    with wrapper.optim_context(model):
        maps = model.backbone(torch.randn(3, 4))
    assert isinstance(maps, tuple) and [m.dtype for m in maps] == [torch.float32] * 2
    assert torch.equal(maps[0], maps[0].bfloat16().float())


def test_error_inside_leaves_the_model_as_it_was():
    model = Detector()
    wrapper = OPTIM_WRAPPERS.build(
        dict(type="BFloat16OptimWrapper", optimizer=torch.optim.SGD(model.parameters(), lr=0.1), parts=["backbone"])
    )
    with pytest.raises(RuntimeError), wrapper.optim_context(model):
        model(torch.randn(3, 5))
    assert model.backbone(torch.randn(3, 4)).dtype == torch.float32 and "forward" not in vars(model.backbone)
