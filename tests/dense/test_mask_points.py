"""Masks sampled at points against bilinear sampling of the same in floating point."""

import pytest
import torch
import torch.nn.functional as F

from apla_mm.dense.mask_points import sample_masks


@pytest.mark.parametrize("dtype", [torch.uint8, torch.bool])
@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("shape", [(3, 9, 14), (2, 1, 1), (0, 4, 5)])
def test_is_grid_sample(shape: tuple[int, int, int], shared: bool, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    masks = torch.randint(2, shape).to(dtype)
    points = torch.rand(1 if shared else len(masks), 50, 2, dtype=torch.float64) * 1.4 - 0.2  # some outside
    grid = points.expand(len(masks), -1, -1)[:, :, None] * 2 - 1
    right = F.grid_sample(masks[:, None].double(), grid, align_corners=False)[:, 0, :, 0] if len(masks) else None
    found = sample_masks(masks, points)
    assert found.shape == (len(masks), 50) and found.dtype == torch.float64
    if right is not None:
        torch.testing.assert_close(found, right, rtol=0, atol=1e-12)
