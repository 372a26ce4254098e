"""Every method on real backbones: what trains, plain state dicts, merging, refusals."""

import copy
from typing import Any

import pytest
import torch
from helpers.backbones import BACKBONES
from helpers.comparisons import assert_same, clone
from helpers.nets import Attending, tiny_vit
from helpers.optional import needs
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from apla_mm.methods import METHODS, LoRALinear, build_method
from apla_mm.models import APLAViT

BLOCKS = [f"vit.blocks.{i}" for i in range(2)]
NORMS = [f"{b}.{n}.{k}" for b in BLOCKS for n in ("norm1", "norm2") for k in ("weight", "bias")]
LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")


def make(**options: Any) -> APLAViT:
    torch.manual_seed(0)
    small = dict(depth=2, embed_dim=32, num_heads=2)
    return APLAViT("vit_tiny_patch16_224", pretrained=False, img_size=32, model_kwargs=small, **options)


def lora(*layers: str, blocks: list[str] = BLOCKS) -> set[str]:
    return {f"{b}.{name}.lora.{p}" for b in blocks for name in layers for p in "ab"}


#: with the final norm out of use
EVERY = {name for name, p in make().named_parameters() if p.requires_grad}
W_O = {f"{b}.attn.proj.{k}" for b in BLOCKS for k in ("weight", "bias")}
TRAINS = {
    "full": EVERY,
    "head": set(),
    "norm": set(NORMS),
    "bitfit": {name for name in EVERY if name.endswith("bias")},
    "lora": lora("attn.qkv"),
    "lora:r=2,layers=all": lora(*LINEAR),
    "lora:r=2,layers=[attn.proj,*.mlp.*]": lora("attn.proj", "mlp.fc1", "mlp.fc2"),
    "lora:r=2,layers=fc1,recompute=block": lora("mlp.fc1"),
    "wo": W_O,
    "apla:r=full": W_O,
    "apla:r=4": {name.replace(".proj.", ".proj.trained.") for name in W_O},
}


def test_every_method_is_here() -> None:
    assert {key.partition(":")[0] for key in TRAINS} == set(METHODS)
    assert "vit.norm.weight" not in EVERY and len(NORMS) == 8


@pytest.mark.parametrize("key", TRAINS)
def test_trains_exactly_what_is_meant_with_a_plain_state_dict_and_merges(key: str) -> None:
    backbone, method = make(), build_method(key)
    before, x = clone(backbone.state_dict()), torch.randn(2, 3, 32, 32)
    expected = backbone(x)[0]
    method.prepare(backbone)
    assert {name for name, p in backbone.named_parameters() if p.requires_grad} == TRAINS[key]
    assert_same(backbone.state_dict(), before, ordered=True)
    torch.testing.assert_close(backbone(x)[0], expected)

    trained = [p for p in backbone.parameters() if p.requires_grad]
    for _ in range(3 if trained else 0):
        backbone(x)[0].square().sum().backward()
        torch.optim.SGD(trained, lr=1e-3).step()
    assert all(p.grad is not None for p in trained)
    state = clone(backbone.state_dict())
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [(k, v.shape, v.dtype) for k, v in before.items()]
    changed = {k for k, v in state.items() if not torch.equal(v, before[k])}
    of = {k.split(".lora.")[0] + ".weight" if ".lora." in k else k.replace(".trained.", ".") for k in TRAINS[key]}
    assert changed == of
    plain = make()
    plain.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(plain.eval()(x)[0], backbone.eval()(x)[0])
    method.merge(backbone)
    assert [type(m) for m in backbone.modules()] == [type(m) for m in plain.modules()] or key.startswith("apla")
    assert_same(backbone.state_dict(), state, ordered=True)


@pytest.mark.parametrize("key", ["lora", "lora:layers=all"])
def test_what_the_backbone_has_frozen_itself_gets_no_lora(key: str) -> None:
    backbone = make(out_indices=(0,))  # the second block is out of use
    build_method(key).prepare(backbone)
    found = {name for name, module in backbone.named_modules() if isinstance(module, LoRALinear)}
    assert found and all(name.startswith("vit.blocks.0") for name in found)


@pytest.mark.parametrize("family", BACKBONES)
@pytest.mark.parametrize("key", [key for key in TRAINS if "recompute" not in key])
def test_other_backbones_take_a_method_or_refuse_it_and_stay_as_they_were(family: str, key: str) -> None:
    scope, settings, _ = BACKBONES[family]
    needs(scope)
    if key == "lora:r=2,layers=[attn.proj,*.mlp.*]":
        key = "lora:r=2,layers=[*.ffn.*]"
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(copy.deepcopy(settings))
    before = clone(backbone.state_dict())
    grads = {name: p.requires_grad for name, p in backbone.named_parameters()}
    try:
        build_method(key).prepare(backbone)
    except ValueError as error:
        assert key.startswith("lora"), error
        known = (
            "never calls its projection",
            "its weight is used by itself",
            "has no linear layer",
            "is called",
            "no rank",
        )
        assert any(text in str(error) for text in known), error
        assert {name: p.requires_grad for name, p in backbone.named_parameters()} == grads
        assert not any(isinstance(module, LoRALinear) for module in backbone.modules())
    assert_same(backbone.state_dict(), before, ordered=True)


class NoBias(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3, bias=False)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.other = nn.Linear(3, 3), nn.Linear(3, 3)
        self.other.weight = self.q.weight


class ReadsWeight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(4, 12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.qkv.weight)


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(False)


REFUSED = [
    ("norm", NoBias, "norm: NoBias has no norms"),
    ("bitfit", NoBias, "bitfit: NoBias has no biases"),
    ("wo", NoBias, "no attention was found in"),
    ("norm", lambda: frozen(make()), "norm: APLAViT has frozen all of its norms itself, 'vit.blocks.0.norm1.weight'"),
    ("lora", lambda: frozen(make()), "has frozen itself all of the layers of layers='qkv', 'vit.blocks.0.attn.qkv'"),
    ("lora:layers=all", lambda: Attending(nn.MultiheadAttention(8, 2)), "never calls its projection"),
    ("lora", lambda: Attending(nn.MultiheadAttention(8, 2)), "never calls its projection"),
    (
        "lora",
        lambda: Attending(nn.Sequential(nn.Linear(2, 2))),
        "has no linear layer of layers='qkv'.*: there are attn.0",
    ),
    ("lora:layers=fc9", make, "no linear layer is called 'fc9'; there are attn.proj, attn.qkv, mlp.fc1, mlp.fc2"),
    ("lora:r=33", make, "'vit.blocks.0.attn.qkv' is of 96 x 32, and r=33 is no rank"),
    ("lora:r=0", make, "r=0 is no rank"),
    ("lora:alpha=0", make, "alpha=0 must be a number above 0"),
    ("lora:alpha=x", make, "alpha='x' must be a number above 0"),
    ("lora:r=nan", make, "r='nan' is no rank"),
    ("lora:r=2.5", make, "r=2.5 is no rank"),
    ("lora:r=1", lambda: Attending(Tied()), "shares its weight with another module"),
    ("lora:r=1", ReadsWeight, "the layer 'qkv' is not called, its weight is used by itself"),
    ("lora:r=1", lambda: make().bfloat16(), "holds torch.bfloat16"),
    ("lora:recompute=all", make, "recompute='all' must be one of"),
    ("bitfit:recompute=mlps", make, "recompute='mlps' must be one of"),
]


@pytest.mark.parametrize(("key", "build", "message"), REFUSED)
def test_refuses_what_a_model_cannot_take_and_leaves_it(key: str, build: Any, message: str) -> None:
    model = build()
    before = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=message):
        build_method(key).prepare(model)
    after = dict(model.named_parameters())
    assert list(after) == list(before)
    assert all(after[n].requires_grad is g and torch.equal(after[n], t) for n, (g, t) in before.items())


@pytest.mark.parametrize("first", ["lora", "apla:r=4"])
@pytest.mark.parametrize("second", ["full", "head", "norm", "lora"])
def test_a_model_that_is_prepared_is_not_prepared_again(first: str, second: str) -> None:
    model = tiny_vit()
    build_method(first).prepare(model)
    with pytest.raises(ValueError, match="is prepared for training already: call apla_mm.merge"):
        build_method(second).prepare(model)


@pytest.mark.parametrize("key", ["full", "norm", "bitfit", "lora:layers=all", "wo"])
def test_recompute_gives_the_same_gradients(key: str) -> None:
    models = []
    for mode in ("none", "block"):
        model = make().double().requires_grad_(True)
        build_method(f"{key}{',' if ':' in key else ':'}recompute={mode}").prepare(model)
        model(torch.linspace(-1, 1, 2 * 3 * 32 * 32, dtype=torch.float64).reshape(2, 3, 32, 32))[
            0
        ].square().sum().backward()
        models.append({name: p.grad for name, p in model.named_parameters() if p.grad is not None})
    assert_same(*models, tolerance=1e-12)
