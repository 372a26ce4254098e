from collections.abc import Callable

import pytest
import timm
from torch import nn


@pytest.fixture
def make_vit() -> Callable[..., nn.Module]:
    def make(**kwargs: object) -> nn.Module:
        arguments = dict(img_size=32, patch_size=16, embed_dim=32, depth=3, num_heads=2, num_classes=5)
        return timm.create_model("vit_tiny_patch16_224", **{**arguments, **kwargs})

    return make
