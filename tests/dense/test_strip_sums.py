"""Sums over pixels strip by strip, against the same function of the whole resized logits."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from apla_mm.dense import strip_sums


def soft_overlap(logits: Tensor, label: Tensor, weight: Tensor) -> Tensor:
    share = logits.softmax(1)
    target = label.unsqueeze(1) == torch.arange(logits.shape[1])[:, None, None]
    return torch.stack([(share * target).sum((2, 3)), (share * weight.unsqueeze(1)).square().sum((2, 3))])


@settings(max_examples=40, deadline=None)
@given(
    sides=st.tuples(*[st.integers(1, 9)] * 2, *[st.integers(1, 21)] * 2),
    align_corners=st.booleans(),
    budget=st.sampled_from([1, 700, None]),
)
def test_sums_and_gradients_are_those_of_the_whole(
    sides: tuple[int, int, int, int], align_corners: bool, budget: int | None
) -> None:
    h, w, height, width = sides
    torch.manual_seed(0)
    logits = torch.randn(2, 3, h, w, dtype=torch.float64, requires_grad=True)
    label, weight = torch.randint(0, 4, (2, height, width)), torch.rand(2, height, width, dtype=torch.float64)
    resized = F.interpolate(logits, (height, width), mode="bilinear", align_corners=align_corners)
    right = soft_overlap(resized, label, weight)
    found = strip_sums(soft_overlap, logits, (label, weight), align_corners=align_corners, budget=budget)
    assert (found - right).abs().max() < 1e-12 * (1 + right.abs().max())
    both = [torch.autograd.grad((one[0] / one[1]).sum(), logits)[0] for one in (found, right)]
    assert (both[0] - both[1]).abs().max() < 1e-12 * (1 + both[1].abs().max())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32_under_autocast_too(dtype: torch.dtype) -> None:
    logits = torch.randn(1, 3, 4, 4).to(dtype).requires_grad_()
    label = torch.randint(0, 3, (1, 16, 16))
    with torch.autocast("cpu", torch.bfloat16):
        found = strip_sums(soft_overlap, logits, (label, torch.ones(1, 16, 16)))
    found.sum().backward()
    assert found.dtype == torch.float32 and logits.grad is not None and logits.grad.dtype == dtype


def test_a_map_that_requires_a_gradient_is_an_error() -> None:
    maps = torch.zeros(1, 8, 8, dtype=torch.int64), torch.ones(1, 8, 8, requires_grad=True)
    with pytest.raises(ValueError, match="requires a gradient"):
        strip_sums(soft_overlap, torch.randn(1, 3, 4, 4), maps)


def test_nothing_of_full_size_is_there() -> None:
    logits, label = torch.randn(1, 8, 4, 4, requires_grad=True), torch.randint(0, 8, (1, 64, 64))
    seen: list[int] = []

    def of(strip: Tensor, label: Tensor) -> Tensor:
        seen.append(strip.shape[2])
        return strip.square().sum()

    strip_sums(of, logits, (label,), budget=8 * 64 * 4 * 5).backward()
    assert max(seen) <= 5 and sum(seen) == 2 * 64  # forward and backward
