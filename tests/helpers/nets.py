"""Models that train within a second."""

from typing import Any

import timm
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from apla_mm.models import APLAViT


def tiny_vit(**options: Any) -> nn.Module:
    """timm's ViT with two blocks of 32 channels, for images of 32 x 32, and a head of five classes."""
    defaults = dict(img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=5)
    return timm.create_model("vit_tiny_patch16_224", **{**defaults, **options})


class TinyNet(nn.Module):
    """A ViT, a norm that has statistics, and a head."""

    def __init__(self, backbone: nn.Module | None = None, classes: int = 5) -> None:
        super().__init__()
        self.backbone = backbone or tiny_vit(num_classes=0)
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.backbone(x)))


class TinyClassifier(BaseModel):
    """For mmengine: two blocks of a ViT, a norm that has statistics if asked for, a head, and a layer out of use."""

    def __init__(self, norm: bool = False, **backbone: Any) -> None:
        super().__init__()
        self.backbone = APLAViT(
            "vit_tiny_patch16_224",
            pretrained=False,
            img_size=32,
            model_kwargs=dict(depth=2, embed_dim=32, num_heads=2),
            **backbone,
        )
        self.norm = nn.BatchNorm1d(32) if norm else nn.Identity()
        self.head = nn.Linear(32, 3)
        self.idle = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = "tensor") -> Any:
        logits = self.head(self.norm(self.backbone(inputs)[-1].mean((2, 3))))
        return dict(loss=F.cross_entropy(logits, labels)) if mode == "loss" else logits


class Attending(nn.Module):
    """An attention that is part of a model, as attentions are found and replaced there."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.attn(*args, **kwargs)
