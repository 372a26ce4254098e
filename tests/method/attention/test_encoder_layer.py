"""torch's encoder layers, which read an attention's weights where they can: adapted, they call it."""

import copy

import pytest
import torch
from torch import nn

from apla_mm.method import PartialLinear, adapt, merge


def encoder() -> nn.TransformerEncoder:
    torch.manual_seed(0)
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)


def step(model: nn.Module) -> None:
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, PartialLinear):
                module.trained.weight += 1


@pytest.mark.parametrize("masked", [False, True])
def test_evaluation_computes_with_what_was_trained(masked: bool) -> None:
    model, x = encoder(), torch.randn(3, 5, 32)
    mask = torch.arange(5) > torch.tensor([[4], [2], [3]]) if masked else None
    plain = copy.deepcopy(model).eval()
    adapt(model, r=8)
    model.eval()
    inside = slice(None) if mask is None else ~mask  # what a nested tensor leaves out is zero
    with torch.no_grad():
        torch.testing.assert_close(
            model(x, src_key_padding_mask=mask)[inside],
            plain(x, src_key_padding_mask=mask)[inside],
            rtol=1e-4,
            atol=1e-5,
        )
        step(model)
        after = model(x, src_key_padding_mask=mask)
        assert isinstance(copy.deepcopy(model).layers[0].self_attn.out_proj, PartialLinear)
        merged = merge(copy.deepcopy(model))
        assert type(merged) is nn.TransformerEncoder and type(merged.layers[0]) is nn.TransformerEncoderLayer
        assert merged.layers[0].activation_relu_or_gelu == 1 and merged.use_nested_tensor
        torch.testing.assert_close(merged(x, src_key_padding_mask=mask)[inside], after[inside], rtol=1e-4, atol=1e-4)


def test_what_trains_gets_its_gradient_in_evaluation_mode() -> None:
    model, x = encoder(), torch.randn(3, 5, 32)
    reference = copy.deepcopy(model).eval().requires_grad_(True)
    report = adapt(model, r=8)
    adapt(model, r=8)  # once more changes nothing
    model.eval()
    for one in (model, reference):
        (one(x) ** 3).sum().backward()
    for projection in report.projections:
        own = model.get_submodule(projection.name)
        assert isinstance(own, PartialLinear)
        full = reference.get_submodule(projection.name).weight.grad
        torch.testing.assert_close(own.trained.weight.grad, full[list(projection.channels)], rtol=1e-4, atol=1e-5)
