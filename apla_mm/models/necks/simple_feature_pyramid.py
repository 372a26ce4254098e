"""A feature pyramid from the single map of a plain ViT."""

from collections.abc import Sequence

import torch.nn.functional as F
from timm.layers import LayerNorm2d
from torch import Tensor, nn


class SimpleFeaturePyramid(nn.Module):
    """The simple feature pyramid of ViTDet (arXiv 2203.16527, section 3).

    Every level comes from the backbone's last map by itself: scaled by transposed convolutions or pooling, then a 1 x 1
    and a 3 x 3 convolution with a layer norm over channels behind each. Levels beyond those take every other pixel of
    the one before.

    Args:
        in_channels: Channels of the backbone's map.
        out_channels: Channels of each level.
        scale_factors: Size of each level relative to the map: 4, 2, 1 or 0.5, descending. With patches of 16 pixels
            (4, 2, 1, 0.5) gives the strides 4, 8, 16 and 32.
        num_outs: Number of levels given; None for one for each scale factor.
        init_cfg: Taken for mmengine's sake; must be None.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int = 256,
        scale_factors: Sequence[float] = (4, 2, 1, 0.5),
        num_outs: int | None = None,
        init_cfg: None = None,
    ) -> None:
        super().__init__()
        if init_cfg is not None:
            raise ValueError("SimpleFeaturePyramid has its own initialisation; leave `init_cfg` out")
        factors = list(scale_factors)
        if not factors or factors != sorted(set(factors), reverse=True) or not set(factors) <= {4, 2, 1, 0.5}:
            raise ValueError(f"scale_factors={tuple(scale_factors)} must be some of 4, 2, 1, 0.5, descending")
        self.num_outs = len(factors) if num_outs is None else num_outs
        if self.num_outs < len(factors):
            raise ValueError(f"num_outs={num_outs} is less than the {len(factors)} scale_factors")
        self.levels = nn.ModuleList(_level(in_channels, out_channels, factor) for factor in factors)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Compute the levels.

        Args:
            maps: The backbone's maps, of which the last is taken, (B, in_channels, H, W).

        Returns:
            ``num_outs`` maps (B, out_channels, h, w), the finest first.
        """
        # contiguous: the norm's are not, and mmcv's RoIAlign reads any memory as (B, C, H, W)
        levels = [level(maps[-1]).contiguous() for level in self.levels]
        while len(levels) < self.num_outs:
            levels.append(F.max_pool2d(levels[-1], 1, stride=2))
        return tuple(levels)


def _level(in_channels: int, out_channels: int, factor: float) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = in_channels
    if factor == 4:
        half = in_channels // 2
        layers += [nn.ConvTranspose2d(in_channels, half, 2, stride=2), LayerNorm2d(half), nn.GELU()]
        channels = half
    if factor in (4, 2):
        layers.append(nn.ConvTranspose2d(channels, channels // 2, 2, stride=2))
        channels //= 2
    elif factor == 0.5:
        layers.append(nn.MaxPool2d(2))
    layers += [nn.Conv2d(channels, out_channels, 1, bias=False), LayerNorm2d(out_channels)]
    layers += [nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False), LayerNorm2d(out_channels)]
    return nn.Sequential(*layers)
