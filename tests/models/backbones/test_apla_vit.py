import huggingface_hub.constants
import pytest
import timm
import torch
from helpers.comparisons import assert_same, clone
from helpers.optional import needs
from mmengine.registry import DefaultScope
from mmengine.runner import load_checkpoint
from safetensors.torch import save_file
from torch import nn

from apla_mm.method import PartialLinear
from apla_mm.models import APLAViT

TINY = dict(embed_dim=32, depth=4, num_heads=2)


def make(model_name="vit_tiny_patch16_224", **kwargs):
    arguments = dict(img_size=64, pretrained=False, model_kwargs=TINY)
    return APLAViT(model_name, **{**arguments, **kwargs}).eval()


def plain(model_name="vit_tiny_patch16_224", **kwargs):
    return timm.create_model(model_name, num_classes=0, **{"img_size": 64, **TINY, **kwargs}).eval()


@pytest.mark.parametrize("scope", ["mmseg", "mmdet", "mmengine"])
def test_found_from_every_scope(scope):
    from mmengine.registry import MODELS

    config = dict(
        type="APLAViT",
        model_name="vit_tiny_patch16_224",
        pretrained=False,
        model_kwargs=TINY,
        apla=dict(r=2),
        init_cfg=None,
    )
    if scope == "mmseg":
        from mmseg.registry import MODELS
    elif scope == "mmdet":
        needs("mmdet")
        from mmdet.registry import MODELS
    with DefaultScope.overwrite_default_scope(scope):
        backbone = MODELS.build(config)
    assert isinstance(backbone, APLAViT)
    assert len(backbone.report.projections) == 4


@pytest.mark.parametrize(
    ("model_name", "kwargs", "patch"),
    [
        ("vit_tiny_patch16_224", {}, 16),
        ("vit_tiny_patch16_224", dict(patch_size=8), 8),
        ("deit_tiny_distilled_patch16_224", {}, 16),
        ("vit_small_patch14_dinov2", {}, 14),
        ("vit_small_patch14_reg4_dinov2", {}, 14),
        ("vit_base_patch16_siglip_256", {}, 16),
        ("vit_small_patch16_dinov3", dict(embed_dim=64), 16),
        ("eva02_tiny_patch14_224", dict(embed_dim=64), 14),
    ],
)
@pytest.mark.parametrize("size", [(64, 64), (50, 97), (33, 16)])
def test_maps_of_every_size(model_name, kwargs, patch, size):
    kwargs = {**TINY, **kwargs}
    backbone = make(model_name, model_kwargs=kwargs, img_size=4 * patch, out_indices=(1, -1), apla=dict(r=2))
    maps = backbone(torch.randn(2, 3, *size))
    expected = (2, kwargs["embed_dim"], -(-size[0] // patch), -(-size[1] // patch))
    assert [tuple(m.shape) for m in maps] == [expected, expected]
    assert backbone.patch_size == (patch, patch)
    sum(m.sum() for m in maps).backward()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    assert len(trained) == 8
    assert {name for name, p in backbone.named_parameters() if p.grad is not None} == trained


def test_maps_equal_timms_intermediates():
    backbone = make(out_indices=(1, 3), norm=True, apla=dict(r=2))
    model = plain()
    model.load_state_dict(backbone.vit.state_dict(), strict=True)
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model.forward_intermediates(x, indices=[1, 3], norm=True, intermediates_only=True)
        for got, want in zip(backbone(x), expected, strict=True):
            torch.testing.assert_close(got, want)


def test_padding_is_at_the_right_and_lower_edge_with_zeros():
    backbone = make()
    x = torch.randn(1, 3, 50, 97)
    padded = torch.zeros(1, 3, 64, 112)
    padded[..., :50, :97] = x
    with torch.no_grad():
        assert torch.equal(backbone(x)[0], backbone(padded)[0])


def test_position_embedding_is_resampled_as_timm_does():
    backbone = make()
    model = plain(dynamic_img_size=True)
    model.load_state_dict(backbone.vit.state_dict(), strict=True)
    x = torch.randn(1, 3, 96, 48)
    with torch.no_grad():
        want = model.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(backbone(x)[0], want)


def test_what_trains():
    def trained(**kwargs):
        return {n for n, p in make(out_indices=(0, 2), **kwargs).named_parameters() if p.requires_grad}

    channels = {f"vit.blocks.{i}.attn.proj.trained.{part}" for i in range(3) for part in ("weight", "bias")}
    assert trained(apla=dict(r=2)) == channels  # block 3 is behind the last output
    assert trained(frozen=True) == set()
    everything = trained()
    assert {n.split(".")[2] for n in everything if n.startswith("vit.blocks.")} == {"0", "1", "2"}
    assert {"vit.pos_embed", "vit.cls_token", "vit.patch_embed.proj.weight"} < everything
    assert not any(n.startswith("vit.norm.") for n in everything)
    assert any(n.startswith("vit.norm.") for n in trained(norm=True))


@pytest.mark.parametrize("kwargs", [{}, dict(norm=True), dict(apla=dict(r=2))])
def test_everything_that_trains_gets_a_gradient(kwargs):
    backbone = make(out_indices=(0, 2), **kwargs)
    sum(m.sum() for m in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert [n for n, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


def test_trained_backbone_is_a_plain_timm_model():
    backbone = make(out_indices=(3,), norm=True, apla=dict(r=5)).train()
    optimizer = torch.optim.AdamW([p for p in backbone.parameters() if p.requires_grad], lr=1e-2)
    x = torch.randn(2, 3, 64, 64)
    for _ in range(3):
        optimizer.zero_grad()
        backbone(x)[0].square().mean().backward()
        optimizer.step()
    state = {key.removeprefix("vit."): tensor for key, tensor in backbone.state_dict().items()}
    model = plain()
    model.load_state_dict(state, strict=True)
    with torch.no_grad():
        want = model.forward_intermediates(x, indices=[3], norm=True, intermediates_only=True)[0]
        assert (backbone.eval()(x)[0] - want).abs().max() <= 1e-6


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        (dict(model_name="vit_of_mine"), "has no model 'vit_of_mine'"),
        (dict(model_kwargs=dict(embed_dims=32)), "cannot be made with .*embed_dims"),
        (dict(model_name="resnet18", model_kwargs={}, img_size=None), "'resnet18'"),
        (dict(out_indices=(4,)), r"out_indices=\(4,\) must be ascending and distinct blocks out of 4"),
        (dict(out_indices=(2, 1)), "out_indices"),
        (dict(out_indices=()), "out_indices"),
        (dict(apla=dict(r=33)), "r=33 does not fit projection 'blocks.0.attn.proj'"),
        (dict(apla=dict(r=2), frozen=True), "give one of them"),
        (dict(apla=dict(r=2, train_norm=True)), "apla has train_norm, .*method=apla:r=64,train_norm=True"),
        (dict(apla=dict(r=2, sede=1)), "apla has sede, and takes r, seed, .*frozen_dtype: "),
        (dict(init_cfg=dict(type="Pretrained")), "leave `init_cfg` out"),
        (dict(model_kwargs=dict(TINY, patch_drop_rate=0.5)), "patch_drop_rate=0.5, and where patches are dropped"),
    ],
)
def test_bad_arguments(kwargs, message):
    with pytest.raises(ValueError, match=message):
        make(**kwargs)


# weights


@pytest.fixture
def weights():
    torch.manual_seed(3)
    return {key: tensor + 0.01 for key, tensor in plain().state_dict().items()}


def check_loaded(backbone, weights):
    backbone.init_weights()
    for key, tensor in backbone.vit.state_dict().items():
        assert torch.equal(tensor, weights[key]), key
    model = plain()
    model.load_state_dict(weights)
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        want = model.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(backbone(x)[0], want)


@pytest.mark.parametrize("apla", [None, dict(r=3)])
@pytest.mark.parametrize("form", ["safetensors", "pth", "wrapped", "prefixed", "with head"])
def test_weights_from_a_file(tmp_path, weights, form, apla):
    path = tmp_path / ("w.safetensors" if form == "safetensors" else "w.pth")
    if form == "safetensors":
        save_file(weights, path)
    else:
        content = {
            "pth": weights,
            "wrapped": {"epoch": 3, "state_dict": {f"module.{k}": v for k, v in weights.items()}},
            "prefixed": {
                "state_dict": {f"backbone.vit.{k}": v for k, v in weights.items()} | {"head.w": torch.ones(1)}
            },
            "with head": {**weights, "head.weight": torch.ones(7, 32), "head.bias": torch.ones(7)},
        }
        torch.save(content[form], path)
    check_loaded(make(pretrained=str(path), apla=apla), weights)


@pytest.mark.parametrize("registers", [False, True])
def test_weights_with_the_original_dinov2_keys(tmp_path, registers):
    model_name = "vit_small_patch14_reg4_dinov2" if registers else "vit_small_patch14_dinov2"
    kwargs = dict(model_kwargs=TINY, img_size=56)
    model = timm.create_model(model_name, num_classes=0, img_size=56, dynamic_img_size=True, **TINY).eval()
    nn.init.normal_(model.pos_embed)
    state = model.state_dict()
    original = {**state, "mask_token": torch.zeros(1, 32)}
    if registers:  # DINOv2 adds a position to the class token, timm has it added already
        original["register_tokens"] = original.pop("reg_token")
        position = torch.randn(1, 1, 32)
        original["cls_token"] = original["cls_token"] - position
        original["pos_embed"] = torch.cat([position, original["pos_embed"]], 1)
    path = tmp_path / "dinov2.pth"
    torch.save(original, path)
    backbone = make(model_name, pretrained=path, **kwargs)
    backbone.init_weights()
    x = torch.randn(1, 3, 56, 70)
    with torch.no_grad():
        want = model.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(backbone(x)[0], want)


def test_position_embedding_of_another_size_is_resampled_once(tmp_path, weights):
    save_file(weights, tmp_path / "w.safetensors")
    backbone = make(pretrained=tmp_path / "w.safetensors", img_size=(96, 64))
    backbone.init_weights()
    assert backbone.vit.pos_embed.shape == (1, 1 + 6 * 4, 32)
    model = plain(dynamic_img_size=True)
    model.load_state_dict(weights)
    x = torch.randn(1, 3, 96, 64)
    with torch.no_grad():
        want = model.forward_intermediates(x, indices=[3], intermediates_only=True)[0]
        torch.testing.assert_close(backbone(x)[0], want, rtol=1e-3, atol=1e-3)


def test_weights_that_do_not_fit_are_an_error_and_change_nothing(tmp_path, weights):
    missing = {k: v for k, v in weights.items() if not k.startswith("blocks.2.")}
    cases = {
        r"12 missing: blocks.2.attn.proj.bias": missing,
        r"1 unexpected: adapter.weight": {**weights, "adapter.weight": torch.ones(2)},
        r"1 of another shape: blocks.0.mlp.fc1.bias \(64,\) instead of \(128,\)": {
            **weights,
            "blocks.0.mlp.fc1.bias": torch.ones(64),
        },
        r"not finite: blocks.0.mlp.fc1.bias": {**weights, "blocks.0.mlp.fc1.bias": torch.full((128,), torch.nan)},
    }
    for number, (message, state) in enumerate(cases.items()):
        path = tmp_path / f"{number}.safetensors"
        save_file(state, path)
        backbone = make(pretrained=path)
        before = clone(backbone.state_dict())
        with pytest.raises(ValueError, match=message):
            backbone.init_weights()
        assert_same(backbone.state_dict(), before)
        with pytest.raises(RuntimeError, match="no weights yet"):
            backbone(torch.randn(1, 3, 64, 64))


def test_values_of_half_precision_may_add_up_to_more_than_it_holds(tmp_path, weights):
    many = {name: tensor.half() for name, tensor in weights.items()}
    many["blocks.0.mlp.fc1.bias"] = torch.full((128,), 60000.0, dtype=torch.float16)
    save_file(many, tmp_path / "half.safetensors")
    backbone = make(pretrained=tmp_path / "half.safetensors")
    backbone.init_weights()
    assert (backbone.vit.blocks[0].mlp.fc1.bias == 60000).all()


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.pth"):
        make(pretrained=tmp_path / "none.pth").init_weights()
    for name in ("text.pth", "text.safetensors"):
        (tmp_path / name).write_text("not weights")
        with pytest.raises(ValueError, match=f"{name}' (cannot be read|is not a safetensors file)"):
            make(pretrained=tmp_path / name).init_weights()
    torch.save({"w": torch.ones(10000)}, tmp_path / "whole.pth")
    content = (tmp_path / "whole.pth").read_bytes()
    for share in (0.0, 0.5, 0.99):
        (tmp_path / "cut.pth").write_bytes(content[: int(share * len(content))])
        with pytest.raises(ValueError, match="cut.pth' cannot be read"):
            make(pretrained=tmp_path / "cut.pth").init_weights()
    torch.save({"epoch": 3}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        make(pretrained=tmp_path / "empty.pth").init_weights()


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "pwned"), "w"))

    torch.save({"state_dict": Evil()}, tmp_path / "evil.pth")
    with pytest.raises(ValueError, match=r"evil.pth' holds no state dict"):
        make(pretrained=tmp_path / "evil.pth").init_weights()
    assert not (tmp_path / "pwned").exists()


def test_timms_hub_out_of_reach_is_an_error(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # its environment variable is read once
    backbone = APLAViT("vit_tiny_patch16_224.augreg_in21k", pretrained=True)
    with pytest.raises(RuntimeError, match="'vit_tiny_patch16_224.augreg_in21k' could not be had.*pretrained=False"):
        backbone.init_weights()


def test_without_weights_it_does_not_run_and_a_checkpoint_cures_it(tmp_path):
    x = torch.randn(1, 3, 64, 64)
    source = nn.ModuleDict({"backbone": make(apla=dict(r=2))})
    state = source.state_dict()
    torch.save({"state_dict": state}, tmp_path / "whole.pth")
    part = {k: v for k, v in state.items() if "attn.proj" in k}
    torch.save({"state_dict": part}, tmp_path / "part.pth")

    def model():
        return nn.ModuleDict({"backbone": make(pretrained="elsewhere.pth", apla=dict(r=2))})

    bare = model()
    with pytest.raises(RuntimeError, match="pretrained='elsewhere.pth'"):
        bare["backbone"](x)
    load_checkpoint(bare, str(tmp_path / "part.pth"))
    with pytest.raises(RuntimeError, match="no weights yet"):
        bare["backbone"](x)
    load_checkpoint(bare, str(tmp_path / "whole.pth"))
    assert torch.equal(bare["backbone"](x)[0], source["backbone"](x)[0])
    bare = model()
    bare.load_state_dict(state)
    bare["backbone"](x)


def test_adapted_layers_are_where_they_should_be():
    backbone = make(out_indices=(2,), apla=dict(r=2, blocks=[0, 2]))
    kinds = [isinstance(block.attn.proj, PartialLinear) for block in backbone.vit.blocks]
    assert kinds == [True, False, True, False]
