"""A ViT's last blocks, left to queries."""

import pytest
import torch
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from apla_mm.models import APLAViT

KWARGS = dict(depth=4, embed_dim=32, num_heads=2)


def make(name: str = "vit_tiny_patch16_224") -> APLAViT:
    torch.manual_seed(0)
    return APLAViT(name, pretrained=False, img_size=64, query_blocks=2, model_kwargs=KWARGS).eval()


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_dinov3"])
def test_without_queries_they_are_the_vit(name: str) -> None:
    backbone = make(name)
    images = torch.randn(2, 3, 64, 48)
    (blocks,) = backbone(images)
    joined = blocks.join(torch.zeros(0, 32))
    for i in range(2):
        joined = blocks.run(i, joined)
    queries, tokens = blocks.split(joined)
    expected = backbone.vit.forward_features(images)[:, backbone.vit.num_prefix_tokens :]
    assert queries.shape == (2, 0, 32) and tokens.shape == (2, 32, 4, 3)
    torch.testing.assert_close(tokens, expected.transpose(1, 2).unflatten(2, (4, 3)), rtol=0, atol=1e-5)


def test_made_under_autocast_they_compute_under_it_wherever_they_are_run() -> None:
    model = nn.Module()
    model.backbone = make()
    images, queries = torch.randn(1, 3, 64, 64), torch.randn(3, 32)
    wrapper = OPTIM_WRAPPERS.build(
        dict(type="BFloat16OptimWrapper", optimizer=torch.optim.SGD(model.parameters(), lr=0.1), parts=["backbone"])
    )
    with wrapper.optim_context(model):
        (blocks,) = model.backbone(images)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (inside,) = model.backbone(images)
        expected = inside.run(0, inside.join(queries))
    found = blocks.run(0, blocks.join(queries))
    assert torch.equal(found, expected)
    (plain,) = model.backbone(images)
    assert not torch.equal(plain.run(0, plain.join(queries)), found)
    assert blocks.split(found)[1].dtype == torch.float32
