"""Vectors of images out of every kind of ViT that timm has, against timm's own tokens and heads."""

from typing import Any

import pytest
import timm
import torch

from apla_mm.models import APLAViT

from .test_token_grid import ANY, ONE, VIT

WITHOUT = {  # a class token, or one that blocks give
    *("vitamin_small_224", "samvit_base_patch16_224"),
    *("qwen3_vit_88m", "qwen3_vit_88m_merge", "deepseek_vit_412m", "gemma4_vit_167m"),
    *("vit_relpos_small_patch16_224", "vit_srelpos_small_patch16_224", "naflexvit_base_patch16_gap"),
    *("naflexvit_base_patch16_map", "xcit_nano_12_p8_224", "cait_xxs24_224", "convit_tiny"),
}

EVERY = [one for one in ANY + ONE if one[0] != "vit_small_r26_s32_224"]  # a larger copy of another


def make(name: str, kwargs: dict[str, Any], **options: Any) -> APLAViT:
    torch.manual_seed(0)
    return APLAViT(name, pretrained=False, model_kwargs=kwargs, **options).eval()


def trains_what_it_says(backbone: APLAViT, x: torch.Tensor) -> bool:
    backbone(x)[0].square().sum().backward()
    trained = {name for name, p in backbone.named_parameters() if p.requires_grad}
    return bool(trained) and trained == {name for name, p in backbone.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("name", "kwargs", "patch"), EVERY, ids=lambda value: value if type(value) is str else "")
def test_every_vit_gives_vectors_of_its_final_tokens(name: str, kwargs: dict[str, Any], patch: int) -> None:
    size = 224 if (name, kwargs, patch) in ONE else 2 * patch
    x = torch.randn(2, 3, size, size)
    mean = make(name, kwargs, output="mean")
    assert mean(x)[0].shape == (2, mean.embed_dims) and trains_what_it_says(mean, x)
    if name in WITHOUT:
        with pytest.raises(ValueError, match=rf"'{name}'.*class token.*use output='mean'"):
            make(name, kwargs, output="cls_token")
        return
    backbone = make(name, kwargs, output="cls_token")
    (vectors,) = backbone(x)
    assert vectors.shape == (2, backbone.embed_dims)
    assert torch.equal(vectors, backbone.vit.forward_features(x)[:, 0])
    assert trains_what_it_says(backbone, x)


@pytest.mark.parametrize(
    ("name", "options", "output"),
    [
        ("vit_tiny_patch16_224", dict(VIT), "cls_token"),
        ("vit_tiny_patch16_224", dict(VIT, global_pool="avg"), "mean"),  # whose norm comes after the mean
        ("beit_base_patch16_224", dict(VIT), "mean"),
        ("vit_small_patch14_dinov2", dict(VIT, img_size=224), "cls_token"),
    ],
)
def test_what_timms_own_classifier_takes(name: str, options: dict[str, Any], output: str) -> None:
    backbone = make(name, options, output=output)
    theirs = timm.create_model(name, num_classes=0, **options).eval()
    theirs.load_state_dict(backbone.vit.state_dict())
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(backbone(x)[0], theirs(x), rtol=1e-5, atol=1e-5)


def test_class_tokens_of_several_blocks_and_the_mean_of_the_last_as_dinov2_has_them() -> None:
    backbone = make(
        "vit_small_patch14_reg4_dinov2", dict(VIT), img_size=56, out_indices=(1, 2), output="cls_token+mean"
    )
    x = torch.randn(2, 3, 56, 56)
    vit = backbone.vit
    tokens = vit._pos_embed(vit.patch_embed(x))
    found = []
    for block in vit.blocks:
        tokens = block(tokens)
        found.append(vit.norm(tokens))
    expected = torch.cat([found[1][:, 0], found[2][:, 0], found[2][:, 5:].mean(1)], 1)  # behind class and registers
    torch.testing.assert_close(backbone(x)[0], expected)
    assert backbone.embed_dims == 3 * 64 == expected.shape[1]


def test_adapted_it_gives_the_plain_ones_vectors() -> None:
    plain, adapted = (
        make("vit_tiny_patch16_224", dict(VIT), output="cls_token+mean", apla=a) for a in (None, {"r": 4})
    )
    adapted.load_state_dict(plain.state_dict())
    x = torch.randn(2, 3, 224, 224)
    torch.testing.assert_close(adapted(x)[0], plain(x)[0])
    assert trains_what_it_says(adapted, x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(output="token"), "output='token' must be one of 'maps', 'cls_token', 'mean', 'cls_token\\+mean'"),
        (dict(output="mean", window_size=2), "neither query_blocks nor window_size"),
        (dict(output="mean", query_blocks=1), "neither query_blocks nor window_size"),
    ],
)
def test_what_does_not_go_together_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make("vit_tiny_patch16_224", dict(VIT), **options)
