"""resized_cross_entropy against F.interpolate and F.cross_entropy."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apla_mm.dense import resized_cross_entropy

SIDES = st.integers(1, 12)


def plain(
    logits: Tensor, label: Tensor, align_corners: bool, pixel_weight: Tensor | None, reduction: str, **options: Any
) -> Tensor:
    resized = F.interpolate(logits, size=label.shape[1:], mode="bilinear", align_corners=align_corners)
    if pixel_weight is None:
        return F.cross_entropy(resized, label, reduction=reduction, **options)
    loss = F.cross_entropy(resized, label, reduction="none", **options) * pixel_weight
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    weight = options["weight"] if options["weight"] is not None else torch.ones(logits.shape[1], dtype=logits.dtype)
    counts = label != options["ignore_index"]
    return loss.sum() / weight[label[counts]].sum()


@settings(max_examples=150, deadline=None)
@given(
    batch=st.integers(1, 3),
    classes=st.integers(1, 6),
    small=st.tuples(SIDES, SIDES),
    large=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    align_corners=st.booleans(),
    smoothing=st.sampled_from([0.0, 0.1, 1.0]),
    weighted=st.booleans(),
    each_pixel=st.booleans(),
    reduction=st.sampled_from(["mean", "sum", "none"]),
    ignore_index=st.sampled_from([255, -100, 0]),
    budget=st.sampled_from([1, 700, 5000, None]),
    seed=st.integers(0, 2**16),
)
def test_loss_and_gradient_are_those_of_full_size_logits(
    batch, classes, small, large, align_corners, smoothing, weighted, each_pixel, reduction, ignore_index, budget, seed
):
    torch.manual_seed(seed)
    logits = torch.randn(batch, classes, *small, dtype=torch.float64, requires_grad=True)
    label = torch.randint(classes, (batch, *large))
    label[torch.rand(label.shape) < 0.2] = ignore_index
    label[0, 0, 0] = classes - 1  # torch's mean over nothing is NaN
    if ignore_index == classes - 1:
        return
    class_weight = torch.rand(classes, dtype=torch.float64) + 0.1 if weighted else None
    pixel_weight = torch.rand(label.shape, dtype=torch.float64) if each_pixel else None
    options = dict(weight=class_weight, ignore_index=ignore_index, label_smoothing=smoothing)
    expected = plain(logits, label, align_corners, pixel_weight, reduction, **options)
    upstream = torch.randn_like(expected)
    (gradient,) = torch.autograd.grad(expected, logits, upstream)
    found = resized_cross_entropy(
        logits, label, align_corners=align_corners, ignore_index=ignore_index, class_weight=class_weight,
        pixel_weight=pixel_weight, label_smoothing=smoothing, reduction=reduction, budget=budget,
    ).loss  # fmt: skip
    (own,) = torch.autograd.grad(found, logits, upstream)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(own, gradient, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_is_no_worse_than_the_plain_ways(dtype):
    logits = (3 * torch.randn(2, 19, 24, 20)).to(dtype)
    label = torch.randint(19, (2, 96, 80))

    def both(loss):
        given = logits.detach().clone().requires_grad_()
        value = loss(given)
        value.backward()
        return value.double(), given.grad.double()

    def reference(given):
        return F.cross_entropy(F.interpolate(given.double(), size=(96, 80), mode="bilinear"), label)

    exact = both(reference)
    usual = both(lambda given: F.cross_entropy(F.interpolate(given, size=(96, 80), mode="bilinear").float(), label))
    own = both(lambda given: resized_cross_entropy(given, label).loss)
    for found, other, truth in zip(own, usual, exact, strict=True):
        assert (found - truth).abs().max() <= 1.5 * (other - truth).abs().max() + 1e-7


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("batch", [0, 2])
def test_a_mean_over_nothing_is_no_number_and_has_no_gradient(batch, smoothing):
    """Other losses beside it, of other images, are still learned from."""
    logits = torch.randn(batch, 3, 4, 4, requires_grad=True)
    label = torch.full((batch, 8, 8), 255)
    for reduction in ("mean", "sum"):
        expected = plain(logits, label, False, None, reduction, label_smoothing=smoothing, ignore_index=255)
        found = resized_cross_entropy(logits, label, label_smoothing=smoothing, reduction=reduction).loss
        torch.testing.assert_close(found, expected, equal_nan=True)
        gradients = [torch.autograd.grad(loss, logits)[0] for loss in (found, expected)]
        assert torch.equal(*gradients) and not gradients[0].any()


def test_it_computes_in_float32_under_autocast():
    logits, label = torch.randn(2, 5, 8, 8, requires_grad=True), torch.randint(5, (2, 32, 32))
    expected = resized_cross_entropy(logits, label).loss
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(resized_cross_entropy(logits, label).loss, expected)


class Largest(TorchDispatchMode):
    """The most values that a floating tensor had, and every operator that was called."""

    def __init__(self) -> None:
        super().__init__()
        self.numel, self.operators = 0, set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators.add(func.overloadpacket)
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor) and leaf.is_floating_point():
                self.numel = max(self.numel, leaf.numel())
        return result


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_nothing_of_full_size_exists_and_nothing_waits_for_the_device(reduction):
    logits, label = torch.randn(2, 30, 16, 16, requires_grad=True), torch.randint(30, (2, 128, 128))
    with Largest() as largest:
        loss = resized_cross_entropy(logits, label, reduction=reduction, with_accuracy=True, budget=2**16).loss
        loss.sum().backward()
    assert largest.numel <= max(logits.numel(), 2 * 128 * 128, 2**15)
    assert not {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.topk} & largest.operators


def test_pixels_that_are_right_are_counted():
    logits, label = torch.randn(2, 7, 9, 5), torch.randint(7, (2, 20, 33))
    label[torch.rand(label.shape) < 0.3] = 255
    found = resized_cross_entropy(logits, label, with_accuracy=True, budget=900)
    resized = F.interpolate(logits, size=(20, 33), mode="bilinear")
    assert int(found.correct) == int((resized.argmax(1) == label).sum())
    assert int(found.counted) == int((label != 255).sum())
    assert resized_cross_entropy(logits, label).correct is None


def test_compiled_it_is_the_same():
    logits, label = torch.randn(1, 4, 6, 6, requires_grad=True), torch.randint(4, (1, 12, 12))
    expected = resized_cross_entropy(logits, label).loss
    (gradient,) = torch.autograd.grad(expected, logits)

    @torch.compile(backend="aot_eager")
    def step(given: Tensor) -> Tensor:
        return 2 * resized_cross_entropy(2 * given / 2, label).loss

    found = step(logits)
    (own,) = torch.autograd.grad(found, logits)
    torch.testing.assert_close(found, 2 * expected)
    torch.testing.assert_close(own, 2 * gradient)


def test_compiled_for_logits_of_several_sizes():
    """The heads of one model: from the second size on sizes are symbols to the compiler."""

    @torch.compile(backend="aot_eager")
    def step(given: Tensor, label: Tensor) -> Tensor:
        return resized_cross_entropy(given, label, budget=600).loss

    label = torch.randint(4, (2, 24, 24))
    for height, width in ((6, 6), (7, 5), (12, 9)):
        logits = torch.randn(2, 4, height, width, requires_grad=True)
        expected = resized_cross_entropy(logits, label, budget=600).loss
        found = step(logits, label)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(*(torch.autograd.grad(loss, logits) for loss in (found, expected)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(logits=torch.randn(5, 4, 4)), r"logits must be \(B, C, h, w\)"),
        (dict(label=torch.zeros(1, 8, 8, dtype=torch.int64)), r"label must be int64 \(2, H, W\)"),
        (dict(label=torch.zeros(2, 8, 8)), "not torch.float32"),
        (dict(class_weight=torch.ones(4)), r"class_weight must be \(5,\)"),
        (dict(pixel_weight=torch.ones(2, 4, 4)), r"pixel_weight must be \(2, 8, 8\)"),
        (dict(class_weight=torch.ones(5, requires_grad=True)), "class_weight requires a gradient"),
        (dict(pixel_weight=torch.ones(2, 8, 8, requires_grad=True)), "pixel_weight requires a gradient"),
        (dict(label_smoothing=1.5), "label_smoothing=1.5"),
        (dict(reduction="max"), "reduction='max'"),
    ],
)
def test_what_does_not_fit_is_an_error(change, message):
    given = dict(logits=torch.randn(2, 5, 4, 4), label=torch.zeros(2, 8, 8, dtype=torch.int64))
    with pytest.raises(ValueError, match=message):
        resized_cross_entropy(**{**given, **change})


def test_label_that_is_no_class_is_an_error():
    with pytest.raises((IndexError, RuntimeError), match="out of bounds"):
        resized_cross_entropy(torch.randn(1, 3, 4, 4), torch.full((1, 8, 8), 7))
