import pytest
import torch
import torch.nn.functional as F

from apla_mm.dense.strips import Rows, add_strip_gradient, resize_strip, strip_heights


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "large"), [((5, 7), (13, 20)), ((9, 9), (4, 3)), ((1, 4), (6, 4)), ((6, 6), (6, 6))])
def test_strips_are_the_resized_map_and_its_transpose(small, large, align_corners):
    x = torch.randn(2, 3, *small, dtype=torch.float64, requires_grad=True)
    expected = F.interpolate(x, size=large, mode="bilinear", align_corners=align_corners)
    upstream = torch.randn_like(expected)
    expected.backward(upstream)
    rows, gradient, strips = Rows.of(small[0], large[0], align_corners, x), torch.zeros_like(x), []
    for start, end in strip_heights(large[0], 100, x.device, 300):
        strips.append(resize_strip(x.detach(), rows, start, end, large[1], align_corners))
        add_strip_gradient(gradient, upstream[:, :, start:end], rows, start, end, align_corners)
    torch.testing.assert_close(torch.cat(strips, 2), expected.detach(), rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(gradient, x.grad, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("budget", [1, 99, 100, 250, 10**9, None])
def test_strips_cover_all_rows_within_the_budget(budget):
    strips = list(strip_heights(17, 100, torch.device("cpu"), budget))
    assert [row for start, end in strips for row in range(start, end)] == list(range(17))
    assert list(strip_heights(17, 0, torch.device("cpu"), budget)) != []
    if budget:
        assert all((end - start) * 100 <= max(budget, 100) for start, end in strips)
