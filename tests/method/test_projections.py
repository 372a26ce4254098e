import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from apla_mm.method import Projection, adapt, find_projections, projections, register_attention

SMALL = dict(num_classes=0)


@pytest.mark.parametrize(
    ("model_name", "kwargs"),
    [
        ("vit_tiny_patch16_224", dict(embed_dim=32, depth=2, num_heads=2)),
        ("vit_small_patch14_dinov2", dict(embed_dim=32, depth=2, num_heads=2, img_size=28)),
        ("vit_small_patch14_reg4_dinov2", dict(embed_dim=32, depth=2, num_heads=2, img_size=28)),
        ("vit_small_patch16_dinov3", dict(embed_dim=64, depth=2, num_heads=2)),
        ("deit_tiny_distilled_patch16_224", dict(embed_dim=32, depth=2, num_heads=2)),
        ("beit_base_patch16_224", dict(embed_dim=32, depth=2, num_heads=2)),
        ("eva02_tiny_patch14_224", dict(embed_dim=64, depth=2, num_heads=2)),
        ("vit_relpos_small_patch16_224", dict(embed_dim=32, depth=2, num_heads=2)),
    ],
)
def test_every_block_of_timms_vits(model_name, kwargs):
    model = timm.create_model(model_name, num_classes=0, **kwargs)
    found = find_projections(model)
    assert [p.name for p in found] == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    assert all(p.linear is model.get_submodule(p.name) for p in found)
    adapt(model, r=3)
    x = torch.randn(1, 3, *model.patch_embed.img_size)
    model(x).sum().backward()
    trained = [name for name, p in model.named_parameters() if p.grad is not None]
    assert len(trained) == 4
    assert all(".attn.proj.trained." in name for name in trained)


def test_no_attention_is_an_error():
    with pytest.raises(ValueError, match="no attention was found in torch.nn.modules.conv.Conv2d"):
        find_projections(nn.Conv2d(1, 1, 1))


class MyAttention(nn.Module):
    def __init__(self, dim: int = 4, out: type[nn.Module] = nn.Linear) -> None:
        super().__init__()
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Sequential(nn.Linear(dim, dim) if out is nn.Linear else nn.Identity())


class MyBetterAttention(MyAttention):
    pass


@pytest.fixture
def _own_registry(monkeypatch):
    monkeypatch.setattr(projections, "_PROJECTIONS", dict(projections._PROJECTIONS))


@pytest.mark.usefixtures("_own_registry")
def test_unknown_attention_is_an_error_that_says_how_to_register_it():
    model = nn.Sequential(MyAttention(), MyBetterAttention())
    with pytest.raises(ValueError, match=r"2 modules.*'0' \(.*MyAttention\).*register_attention"):
        find_projections(model)
    register_attention(MyAttention, "out.0")
    assert find_projections(model) == [
        Projection("0.out.0", model[0].out[0], model[0]),
        Projection("1.out.0", model[1].out[0], model[1]),
    ]
    with pytest.raises(ValueError, match=r"'out.0' of the attention '0'.*is a Identity, not an nn.Linear"):
        find_projections(nn.Sequential(MyAttention(out=nn.Identity)))


@pytest.mark.usefixtures("_own_registry")
def test_register_by_name():
    register_attention(f"{MyAttention.__module__}.MyAttention", "out.0")
    assert find_projections(MyAttention())[0].name == "out.0"


# kinds for one call alone

MINE = f"{MyAttention.__module__}.MyAttention"


class MyBlock(nn.Module):
    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x):
        q, k, v = self.attn.qkv(x).chunk(3, -1)
        return x + self.attn.out(F.scaled_dot_product_attention(q, k, v))


class TwoWays(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(MyBlock(MyAttention()), MyBlock(MyBetterAttention()))

    def forward(self, x):
        return self.blocks(x)


@pytest.mark.parametrize("recompute", ["none", "block"])
@pytest.mark.parametrize("key", [MINE, MyAttention])
def test_attentions_of_one_call(key, recompute):
    model = TwoWays()
    report = adapt(model, r=2, attentions={key: "out.0"}, recompute=recompute)
    assert [p.name for p in report.projections] == ["blocks.0.attn.out.0", "blocks.1.attn.out.0"]
    assert report.arguments["attentions"] == {MINE: "out.0"}
    model(torch.rand(1, 3, 4)).sum().backward()
    assert sum(p.grad is not None for p in model.parameters()) == 4
    with pytest.raises(ValueError, match="2 modules look like attention"):
        find_projections(model)


def test_none_leaves_a_kind_frozen():
    model = TwoWays()
    better = f"{MyAttention.__module__}.MyBetterAttention"
    report = adapt(model, r=2, attentions={MINE: "out.0", better: None})
    assert [p.name for p in report.projections] == ["blocks.0.attn.out.0"]
    assert not any(p.requires_grad for p in model.blocks[1].parameters())


@pytest.mark.parametrize(
    ("attentions", "message"),
    [
        ({"mypackage.Attention": "proj"}, "the model has no module of class 'mypackage.Attention'; there are"),
        ({MINE: "proj"}, "'proj' of the attention 'blocks.0.attn'.* is missing, not an nn.Linear"),
        ({MINE: "out"}, "'out' of the attention 'blocks.0.attn'.* is a Sequential, not an nn.Linear"),
        ({MINE: ""}, "must be its path"),
        ({MINE: 3}, "must be its path"),
        ({"MyAttention": "out.0"}, "must be a class, or its full name"),
        ([MINE], "must map classes to paths"),
    ],
)
def test_attentions_that_do_not_fit_are_an_error_and_change_nothing(attentions, message):
    model = TwoWays()
    with pytest.raises(ValueError, match=message):
        adapt(model, r=2, attentions=attentions)
    assert all(p.requires_grad for p in model.parameters())
    assert type(model.blocks[0].attn.out[0]) is nn.Linear


# an attention is known for one by its structure


class Mixer(nn.Module):
    """Called nothing of the kind."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(self._mix(*self.first(x).chunk(3, -1)))

    def _mix(self, q, k, v):
        return (q @ k.mT).softmax(-1) @ v


class FusedMixer(Mixer):
    def _mix(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v)


class Product(Mixer):
    def forward(self, x):
        return self.last(product(*self.first(x).chunk(3, -1)))


def product(q, k, v):
    return torch.einsum("nm,md->nd", torch.softmax(torch.einsum("nd,md->nm", q, k), -1), v)


class Separate(nn.Module):
    """Its code says nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)


class Convolutional(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Conv2d(4, 12, 1), nn.Conv2d(4, 4, 1)
        self.table = nn.Linear(2, 2)


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))


class Block(nn.Module):
    def __init__(self, **children: nn.Module) -> None:
        super().__init__()
        for name, child in children.items():
            self.add_module(name, child)


@pytest.mark.parametrize("kind", [Mixer, FusedMixer, Product, Separate])
def test_no_silent_miss_of_what_attends(kind):
    known = nn.MultiheadAttention(4, 2)
    model = nn.ModuleList([Block(known=known), Block(mixer=kind())])
    with pytest.raises(ValueError, match=rf"1 modules look like attention.*'1.mixer' \(.*{kind.__name__}\)"):
        find_projections(model)
    found = find_projections(model, {kind: "last"})
    assert [p.name for p in found] == ["0.known.out_proj", "1.mixer.last"]


def test_no_silent_miss_of_what_a_block_calls_its_attention():
    model = nn.Sequential(Block(mixer=Plain()), Block(self_attn=Plain()))
    with pytest.raises(ValueError, match=r"1 modules look like attention.*'1.self_attn' \(.*Plain\)"):
        find_projections(model)


def test_every_kind_that_is_not_known_is_named():
    model = nn.ModuleList([*[Mixer() for _ in range(5)], *[Separate() for _ in range(4)]])
    message = r"9 modules look like attention.*'0' \(.*Mixer, 5 of them\), '5' \(.*Separate, 4 of them\)"
    with pytest.raises(ValueError, match=message):
        find_projections(model)


def test_a_convolution_for_a_projection_is_told():
    with pytest.raises(ValueError, match="here is none \\(Convolutional: its W_O, 'proj', is a convolution\\)"):
        find_projections(nn.ModuleList([Convolutional()]))


class Unnoticed(nn.Module):
    """Uses the weight of its projection by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(4, 12), nn.Linear(4, 4)

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, -1)
        return F.linear(F.scaled_dot_product_attention(q, k, v), self.proj.weight, self.proj.bias)


def test_a_projection_that_is_not_called_is_an_error():
    with pytest.raises(ValueError, match="'proj' of the attention '0'.*is not called"):
        find_projections(nn.ModuleList([Unnoticed()]), {Unnoticed: "proj"})


@pytest.mark.parametrize(
    ("model_name", "message"),
    [
        ("test_coatnet", "Attention2d: its W_O, 'proj', is a convolution"),
        ("levit_conv_128s", "is a Conv2d, not an nn.Linear: with use_conv=True W_O is a convolution"),
        ("mobilenetv4_hybrid_medium", "MultiQueryAttention2d: its W_O, 'output', is a convolution"),
        ("vit_dpwee_patch16_reg1_gap_256", "DiffParallelScalingBlock: W_O is one layer with the MLP's last"),
        ("resnet18", "no attention was found"),
        ("mixer_s32_224", "no attention was found"),
    ],
)
def test_timms_without_a_linear_projection(model_name, message):
    with pytest.raises(ValueError, match=message):
        find_projections(timm.create_model(model_name))


def test_an_attention_that_has_no_projection_stays_frozen():
    model = timm.create_model("csatv2")
    report = adapt(model, r=2)
    assert len(report.projections) == 4
    assert all(".attn.proj" in name for name, p in model.named_parameters() if p.requires_grad)
