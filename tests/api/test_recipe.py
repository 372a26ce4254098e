"""The config of a task, fitted to a ViT."""

import pytest

from apla_mm.api.recipe import recipe


def test_a_recipe_takes_the_vits_own_patches_and_normalisation() -> None:
    cfg = recipe("det", "vit_small_patch14_dinov2.lvd142m", 112)
    assert cfg.model.rpn_head.anchor_generator.strides == [3.5, 7, 14, 28, 56]
    assert cfg.model.neck.in_channels == 384 and cfg.model.backbone.global_blocks == (2, 5, 8, 11)
    assert cfg.model.data_preprocessor.mean == pytest.approx([123.675, 116.28, 103.53])
    seg = recipe("seg", "vit_large_patch16_dinov3.lvd1689m", None)
    assert seg.model.backbone.out_indices == (20, 21, 22, 23) and seg.model.decode_head.channels == 4096
    assert seg.model.data_preprocessor.size == (512, 512)
