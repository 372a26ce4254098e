import pytest
import timm
import torch
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
