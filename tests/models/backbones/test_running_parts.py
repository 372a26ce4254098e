"""What trains of a backbone of which some blocks do not run."""

from typing import Any

import pytest
import torch
from torch import nn

from apla_mm.models import APLAViT


def make(model_name: str = "vit_tiny_patch16_224", size: int = 64, **kwargs: Any) -> APLAViT:
    arguments: dict[str, Any] = dict(
        out_indices=(0, 2), img_size=size, pretrained=False, model_kwargs=dict(embed_dim=32, depth=4, num_heads=2)
    )
    return APLAViT(model_name, **{**arguments, **kwargs})


def trained(backbone: nn.Module) -> set[str]:
    return {name.replace(".trained.", ".") for name, p in backbone.named_parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("blocks", "adapted"), [("all", [0, 1, 2]), (1, [2]), (2, [1, 2]), (3, [0, 1, 2]), ([0, 2], [0, 2])]
)
def test_blocks_are_counted_among_those_that_run(blocks: Any, adapted: list[int]) -> None:
    backbone = make(apla=dict(r=2, blocks=blocks))
    assert backbone.report is not None
    assert [p.name for p in backbone.report.projections] == [f"blocks.{i}.attn.proj" for i in adapted]
    sum(one.sum() for one in backbone(torch.randn(1, 3, 64, 64))).backward()
    assert [name for name, p in backbone.named_parameters() if p.requires_grad and p.grad is None] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(blocks=4), "blocks=4 does not fit a model with 3 attentions"),
        (dict(blocks=[1, 3]), r"blocks=\[1, 3\] lists \[3\], which no output depends on.*blocks \[0, 1, 2\] do"),
        (dict(blocks=[4]), r"blocks=\[4\] does not fit a model with 4 attentions"),
        (dict(trainable=["blocks.3.*"]), r"'blocks.3.\*' matches 'blocks.3.norm1.weight'.*no output depends on"),
        (dict(trainable=["norm.*"]), r"'norm.\*' matches 'norm.weight', 'norm.bias', which no output depends on"),
        (dict(trainable=["head.*"]), "matches no parameter"),
    ],
)
def test_what_does_not_run_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(apla=dict(r=2, **arguments))


def test_patterns_mean_what_runs() -> None:
    backbone = make(apla=dict(r=2, blocks="none", trainable=["blocks.*.norm1.weight", "cls_token"]))
    assert trained(backbone) == {"vit.cls_token", *(f"vit.blocks.{i}.norm1.weight" for i in range(3))}
    with_norm = make(norm=True, apla=dict(r=2, blocks="none", trainable=["norm.*"]))
    assert trained(with_norm) == {"vit.norm.weight", "vit.norm.bias"}


@pytest.mark.parametrize("how", [dict(apla=dict(r=2)), dict(frozen=True)])
def test_what_is_frozen_runs_as_in_evaluation(how: dict[str, Any]) -> None:
    torch.manual_seed(0)
    rates = dict(proj_drop_rate=0.5, attn_drop_rate=0.5, pos_drop_rate=0.5)
    backbone = make("vit_small_resnet26d_224", model_kwargs=dict(embed_dim=32, depth=4, num_heads=2, **rates), **how)
    norms = [module for module in backbone.modules() if isinstance(module, nn.BatchNorm2d)]
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = backbone.eval()(x)
    statistics = [norm.running_mean.clone() for norm in norms if norm.running_mean is not None]
    found = backbone.train()(x)
    assert backbone.training
    assert norms
    for one, right in zip(found, expected, strict=True):
        torch.testing.assert_close(one, right, rtol=0, atol=0)
    for norm, before in zip(norms, statistics, strict=True):
        assert torch.equal(norm.running_mean, before)


def test_stochastic_depth_goes_on_and_full_fine_tuning_drops() -> None:
    torch.manual_seed(0)
    size = dict(embed_dim=32, depth=4, num_heads=2)
    x = torch.randn(2, 3, 64, 64)
    for how in (
        dict(apla=dict(r=2), model_kwargs=dict(size, drop_path_rate=0.5)),
        dict(model_kwargs=dict(size, pos_drop_rate=0.5)),
    ):
        backbone = make(**how).train()
        assert not torch.equal(backbone(x)[1], backbone(x)[1])
