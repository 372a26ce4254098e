from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from apla_mm.dense import strips as of_strips
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


class Called(TorchDispatchMode):
    """Every operator that is called."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: set[Any] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operators.add(func.overloadpacket)
        return func(*args, **(kwargs or {}))


@pytest.fixture
def deterministic() -> Any:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("align_corners", [False, True])
def test_deterministic_algorithms_alone_are_used_where_they_shall_be(
    deterministic: None, align_corners: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Called() as called:
        gradient = torch.zeros(2, 3, 5, 4, device="meta")
        rows = Rows.of(5, 9, align_corners, gradient)
        add_strip_gradient(gradient, torch.zeros(2, 3, 9, 11, device="meta"), rows, 0, 9, align_corners)
    assert torch.ops.aten.index_add in called.operators
    assert torch.ops.aten.upsample_bilinear2d_backward not in called.operators
    # the same on a CPU, of which torch needs it not
    upstream = torch.randn(2, 3, 9, 11, dtype=torch.float64)
    expected = of_strips._gradient_of_columns(upstream, 4, align_corners)
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    torch.testing.assert_close(of_strips._gradient_of_columns(upstream, 4, align_corners), expected)
