import pytest
import torch
from helpers.comparisons import assert_same, clone
from helpers.nets import Attending, tiny_vit
from torch import nn

from apla_mm.measure import compared_methods
from apla_mm.measure.compared_methods import SplitProjections
from apla_mm.method import adapt

WIDTH, DEPTH = 32, 3
METHODS = {method.name: method.method for method in compared_methods([4, "full"], ["none", "mlp", "block"])}
BLOCK = dict(qkv=(WIDTH, 3 * WIDTH), proj=(WIDTH, WIDTH), fc1=(WIDTH, 4 * WIDTH), fc2=(4 * WIDTH, WIDTH))
BIASES = DEPTH * (sum(out for _, out in BLOCK.values()) + 2 * WIDTH) + WIDTH + WIDTH  # norms, patches
W_O = DEPTH * (WIDTH + 1) * WIDTH
TRAINED = {
    "head only": 0,
    "BitFit": BIASES,
    "LoRA r=8, qkv": DEPTH * 8 * sum(BLOCK["qkv"]),
    "LoRA r=8, all linear": DEPTH * 8 * sum(map(sum, BLOCK.values())),
    "W_O in full, as it is": W_O,
    "W_O split, r=4": DEPTH * 4 * (WIDTH + 1),
    "frozen, but for one bias": WIDTH,
    "APLA r=4": DEPTH * 4 * (WIDTH + 1),
    "APLA r=full": W_O,
    "APLA r=4, mlp": DEPTH * 4 * (WIDTH + 1),
    "APLA r=4, block": DEPTH * 4 * (WIDTH + 1),
}


def make() -> nn.Module:
    torch.manual_seed(0)
    return tiny_vit(embed_dim=WIDTH, depth=DEPTH, num_classes=0).train()


def test_full_fine_tuning_comes_first():
    assert list(METHODS) == ["full fine-tuning", "all trains, checkpointed", *TRAINED]
    model = make()
    METHODS["full fine-tuning"].prepare(model)
    assert all(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("name", TRAINED)
def test_what_trains_and_that_nothing_else_moves(name):
    model = make()
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    METHODS[name].prepare(model)
    torch.testing.assert_close(model(x), expected)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert sum(parameter.numel() for parameter in trained) == TRAINED[name]
    if not trained:
        return
    frozen = {k: (p, p.detach().clone()) for k, p in model.named_parameters() if not p.requires_grad}
    model(x).square().sum().backward()
    torch.optim.SGD(trained, lr=0.1).step()
    moved = {k for k, (p, before) in frozen.items() if not torch.equal(p, before)}
    assert not moved and all(parameter.grad is not None for parameter in trained)


def test_split_projections_have_the_gradients_of_apla():
    split, ours = make().double(), make().double()
    SplitProjections(4).prepare(split)
    adapt(ours, r=4)
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    for model in (split, ours):
        model(x).square().sum().backward()
    for one, other in zip(split.blocks, ours.blocks, strict=True):
        channels = other.attn.proj.trained.channels
        assert torch.equal(one.attn.proj.channels, channels)
        torch.testing.assert_close(one.attn.proj.channels_weight.grad, other.attn.proj.trained.weight.grad)
        torch.testing.assert_close(one.attn.proj.channels_bias.grad, other.attn.proj.trained.bias.grad)


@pytest.mark.parametrize("name", ["LoRA r=8, qkv", "LoRA r=8, all linear", "W_O split, r=4"])
def test_multihead_attention_cannot_be_wrapped_and_says_so(name):
    model = Attending(nn.MultiheadAttention(8, 2))
    before = clone(model.state_dict())
    with pytest.raises(ValueError, match="never calls its projection"):
        METHODS[name].prepare(model)
    assert_same(model.state_dict(), before)
