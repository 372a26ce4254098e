import pytest
import torch
import torch.nn.functional as F
from mmengine.registry import MODELS

from apla_mm.models import SimpleFeaturePyramid


def test_levels_have_the_sizes_of_their_strides() -> None:
    neck = MODELS.build(dict(type="SimpleFeaturePyramid", in_channels=32, out_channels=8, num_outs=5))
    maps = [torch.randn(2, 32, 6, 4), torch.randn(2, 32, 6, 4)]
    levels = neck(maps)
    assert [tuple(level.shape) for level in levels] == [
        (2, 8, 24, 16),
        (2, 8, 12, 8),
        (2, 8, 6, 4),
        (2, 8, 3, 2),
        (2, 8, 2, 1),
    ]
    assert torch.equal(levels[4], levels[3][..., ::2, ::2])


def test_only_the_last_map_counts() -> None:
    neck = SimpleFeaturePyramid(8, 4, scale_factors=(2, 1))
    first, last = torch.randn(1, 8, 3, 3), torch.randn(1, 8, 3, 3)
    for a, b in zip(neck([first, last]), neck([last, last]), strict=True):
        assert torch.equal(a, b)


def test_level_of_the_maps_own_size_in_plain_torch() -> None:
    neck = SimpleFeaturePyramid(8, 4, scale_factors=(1,))
    x = torch.randn(2, 8, 5, 3)
    conv1, norm1, conv3, norm3 = neck.levels[0]
    for norm in (norm1, norm3):
        torch.nn.init.normal_(norm.weight)
        torch.nn.init.normal_(norm.bias)

    def normalised(y: torch.Tensor, norm: torch.nn.Module) -> torch.Tensor:
        mean, var = y.mean(1, keepdim=True), y.var(1, unbiased=False, keepdim=True)
        return (y - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None] + norm.bias[:, None, None]

    y = normalised(F.conv2d(x, conv1.weight), norm1)
    y = normalised(F.conv2d(y, conv3.weight, padding=1), norm3)
    torch.testing.assert_close(neck([x])[0], y, rtol=1e-4, atol=1e-5)


def test_other_levels_are_scaled_first_by_plain_torch() -> None:
    neck = SimpleFeaturePyramid(8, 4)
    x = torch.randn(2, 8, 4, 6)
    four, two, one, half = neck.levels
    y = F.conv_transpose2d(x, four[0].weight, four[0].bias, stride=2)
    y = F.gelu(F.layer_norm(y.movedim(1, -1), (4,), eps=four[1].eps).movedim(-1, 1))
    y = F.conv_transpose2d(y, four[3].weight, four[3].bias, stride=2)
    scaled = [
        (four, y),
        (two, F.conv_transpose2d(x, two[0].weight, two[0].bias, stride=2)),
        (one, x),
        (half, F.max_pool2d(x, 2)),
    ]
    for (level, expected), got in zip(scaled, neck([x]), strict=True):
        torch.testing.assert_close(got, level[-4:](expected))


def test_every_parameter_trains() -> None:
    neck = SimpleFeaturePyramid(8, 4, num_outs=5)
    sum(level.square().sum() for level in neck([torch.randn(1, 8, 4, 4)])).backward()
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for name, p in neck.named_parameters() if "bias" not in name
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(scale_factors=(1, 2)), "descending"),
        (dict(scale_factors=(8, 4)), r"scale_factors=\(8, 4\) must be some of"),
        (dict(scale_factors=()), "must be some of"),
        (dict(num_outs=3), "num_outs=3 is less than the 4 scale_factors"),
        (dict(init_cfg=dict(type="Xavier")), "leave `init_cfg` out"),
    ],
)
def test_arguments_that_cannot_be_are_an_error(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SimpleFeaturePyramid(8, 4, **arguments)


def test_mmcvs_roi_align_reads_the_levels_as_they_are() -> None:
    """It takes any memory for contiguous, and gives values of other pixels and channels where it is not."""
    roi_align = pytest.importorskip("mmcv.ops").roi_align
    level = SimpleFeaturePyramid(8, 4, (1,))([torch.randn(1, 8, 6, 6)])[0].detach()
    whole = roi_align(level, torch.tensor([[0.0, 0, 0, 6, 6]]), (6, 6), 1.0, 1, "avg", True)
    torch.testing.assert_close(whole, level)
