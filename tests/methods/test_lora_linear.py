import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from helpers.comparisons import assert_same, clone
from helpers.nets import tiny_vit
from helpers.optional import needs
from torch import Tensor, nn

from apla_mm.measure import SavedTensors
from apla_mm.method import merge
from apla_mm.methods import LoRA, LoRALinear


def trained_layer(dtype: torch.dtype = torch.float64, bias: bool = True) -> LoRALinear:
    """One of 5 -> 7 with B other than zero."""
    torch.manual_seed(0)
    layer = LoRALinear.of(nn.Linear(5, 7, bias=bias, dtype=dtype), r=3, scale=0.5, seed="x")
    with torch.no_grad():
        layer.lora.b.normal_()
    return layer


@pytest.mark.parametrize("bias", [True, False])
def test_outputs_and_gradients_are_those_of_w_plus_b_a_by_hand(bias: bool) -> None:
    layer = trained_layer(bias=bias)
    x = torch.randn(4, 6, 5, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(4, 6, 7, dtype=torch.float64)
    y = layer(x)
    (y * weights).sum().backward()

    a, b = (p.detach().clone().requires_grad_() for p in (layer.lora.a, layer.lora.b))
    other = x.detach().clone().requires_grad_()
    expected = other @ (layer.weight.detach() + 0.5 * b @ a).T + (layer.bias.detach() if bias else 0)
    (expected * weights).sum().backward()
    torch.testing.assert_close(y, expected)
    for got, by_hand in ((layer.lora.a.grad, a.grad), (layer.lora.b.grad, b.grad), (x.grad, other.grad)):
        torch.testing.assert_close(got, by_hand)
    assert layer.weight.grad is None and not layer.weight.requires_grad


def test_evaluation_and_the_merged_layer_give_what_training_gives() -> None:
    layer = trained_layer()
    x = torch.randn(4, 5, dtype=torch.float64)
    unmerged = layer(x)
    evaluated = layer.eval()(x)
    torch.testing.assert_close(evaluated, unmerged)
    plain = nn.Linear(5, 7, dtype=torch.float64)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain(x), evaluated)
    merge(layer)
    assert type(layer) is nn.Linear and list(layer._modules) == [] and torch.equal(layer(x), evaluated)


def test_state_dict_is_the_plain_layers() -> None:
    plain = nn.Linear(5, 7)
    plain.weight.data[0, 0] = -0.0
    before = clone(plain.state_dict())
    layer = LoRALinear.of(plain, r=2, scale=1.0, seed="x")
    assert_same(layer.state_dict(), before, ordered=True)  # minus zero too
    with torch.no_grad():
        layer.lora.b.normal_()
    state = layer.state_dict()
    assert list(state) == ["weight", "bias"]
    torch.testing.assert_close(state["weight"], before["weight"] + layer.lora.b @ layer.lora.a)
    assert not state["weight"].requires_grad


def test_a_loaded_weight_is_what_the_layer_then_is() -> None:
    layer, other = trained_layer(), nn.Linear(5, 7, dtype=torch.float64)
    layer.load_state_dict(other.state_dict())
    assert_same(layer.state_dict(), other.state_dict())
    assert not layer.lora.b.any() and layer.lora.a.any()
    layer = trained_layer()
    b = layer.lora.b.clone()
    layer.load_state_dict(dict(bias=other.bias), strict=False)
    assert torch.equal(layer.lora.b, b)  # the weight was not loaded


@pytest.mark.parametrize("how", [copy.deepcopy, lambda layer: pickle.loads(pickle.dumps(layer)), "save"])
def test_copies_are_whole(how: object) -> None:
    layer = trained_layer()
    if how == "save":
        file = io.BytesIO()
        torch.save(layer, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    else:
        other = how(layer)
    x = torch.randn(2, 5, dtype=torch.float64)
    assert torch.equal(other(x), layer(x)) and other.lora.b is not layer.lora.b
    assert_same(other.state_dict(), layer.state_dict())


def test_merged_in_full_precision_under_autocast() -> None:
    layer = trained_layer(torch.float32).eval()
    expected = layer.weight + 0.5 * layer.lora.b @ layer.lora.a
    x = torch.randn(4, 5)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.state_dict()["weight"], layer.merged_weight())
        torch.testing.assert_close(layer.merged_weight(), expected)
        plain = F.linear(x, layer.state_dict()["weight"], layer.bias)
        assert layer(x).dtype == torch.bfloat16 and torch.equal(layer(x), plain)


def test_draws_no_random_number_of_others_and_the_same_everywhere() -> None:
    torch.manual_seed(3)
    expected = torch.randn(2)
    torch.manual_seed(3)
    layers = [LoRALinear.of(nn.Linear(4, 4, device="meta").to_empty(device="cpu"), 2, 1.0, s) for s in ("x", "x", "y")]
    assert torch.equal(torch.randn(2), expected)
    assert torch.equal(layers[0].lora.a, layers[1].lora.a) and not torch.equal(layers[0].lora.a, layers[2].lora.a)
    assert layers[0].lora.a.abs().max() <= 0.5


def test_computes_and_keeps_what_peft_does() -> None:
    needs("peft")
    from peft import LoraConfig, inject_adapter_in_model

    def run(model: nn.Module, parts: list[nn.Parameter]) -> tuple[Tensor, list[Tensor], int]:
        torch.manual_seed(1)
        x = torch.randn(2, 3, 32, 32)
        with SavedTensors(model=model) as kept:
            loss = model(x).square().sum()
        loss.backward()
        return loss, [p.grad for p in parts], kept.bytes

    torch.manual_seed(0)
    ours = tiny_vit()
    theirs = copy.deepcopy(ours)
    LoRA(r=4, alpha=8, layers=["qkv", "fc1"]).prepare(ours)
    own = [m for m in ours.modules() if isinstance(m, LoRALinear)]
    inject_adapter_in_model(LoraConfig(r=4, lora_alpha=8, target_modules=["qkv", "fc1"]), theirs)
    layers = [m for m in theirs.modules() if type(m).__name__ == "Linear" and hasattr(m, "lora_A")]
    assert len(own) == len(layers) == 4
    with torch.no_grad():
        for one, other in zip(own, layers, strict=True):
            one.lora.b.normal_()
            other.lora_A["default"].weight.copy_(one.lora.a)
            other.lora_B["default"].weight.copy_(one.lora.b)
    got = run(ours, [p for m in own for p in (m.lora.a, m.lora.b)])
    expected = run(theirs, [m.weight for layer in layers for m in (layer.lora_A["default"], layer.lora_B["default"])])
    assert_same(got[:2], expected[:2])
    assert got[2] <= expected[2]
