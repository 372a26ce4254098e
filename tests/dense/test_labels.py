"""resized_labels against F.interpolate, slicing, flip and argmax, one behind the other."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apla_mm.dense import Crop, Flip, Resize, ResizedLogits, Windows, averaged_labels, resized_labels
from apla_mm.dense.resized_logits import Step

SIDE = st.integers(1, 30)
SIZE = st.tuples(SIDE, SIDE)
STEP = st.one_of(
    st.builds(Resize, SIZE, st.booleans()),
    st.builds(Crop, *[st.integers(0, 3)] * 4),
    st.builds(Flip, st.sampled_from(["horizontal", "vertical"])),
)


def plain(logits: Tensor, steps: Sequence[Step]) -> Tensor:
    for step in steps:
        if isinstance(step, Resize):
            logits = F.interpolate(logits, step.size, mode="bilinear", align_corners=step.align_corners)
        elif isinstance(step, Crop):
            height, width = logits.shape[2:]
            logits = logits[:, :, step.top : height - step.bottom, step.left : width - step.right]
        else:
            logits = logits.flip(3 if step.direction == "horizontal" else 2)
    return logits


def assert_labels(labels: Tensor, logits: Tensor, rounding: float) -> None:
    """Each pixel's label is its largest logit's, or one's that is as large to rounding."""
    assert labels.shape == (logits.shape[0], *logits.shape[2:])
    assert labels.dtype == torch.int64
    own = logits.gather(1, labels.unsqueeze(1))
    assert (logits.amax(1, keepdim=True) - own).max() <= rounding


@settings(max_examples=300, deadline=None)
@given(
    batch=st.integers(1, 2),
    classes=st.sampled_from([2, 3, 7, 300]),
    small=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    steps=st.lists(STEP, max_size=5),
    budget=st.sampled_from([1, 3000, 20000, None]),
    seed=st.integers(0, 2**16),
)
def test_labels_are_those_of_full_size_logits(batch, classes, small, steps, budget, seed):
    torch.manual_seed(seed)
    logits = torch.randn(batch, classes, *small, dtype=torch.float64)
    expected = None
    try:
        resized = ResizedLogits(logits, steps)
    except ValueError:  # cropped to nothing
        return
    expected = plain(logits, steps)
    index = torch.arange(expected.shape[2])
    torch.testing.assert_close(resized.rows(index), expected, rtol=1e-12, atol=1e-12)
    assert_labels(resized_labels(logits, steps, budget=budget), expected, 1e-12)
    assert torch.equal(resized_labels(resized.image(0), budget=budget), resized_labels(logits[:1], steps))


@pytest.mark.parametrize("align_corners", [False, True])
def test_mmsegs_way_to_the_original_size(align_corners):
    logits = torch.randn(2, 19, 16, 20, dtype=torch.float64)
    steps = [Resize((64, 80), align_corners), Crop(0, 7, 0, 13), Flip("horizontal"), Resize((91, 60), align_corners)]
    expected = plain(logits, steps)
    labels = resized_labels(logits, steps, budget=10**4)
    assert torch.equal(labels, expected.argmax(1))
    further = resized_labels(ResizedLogits(logits, steps[:2]), steps[2:])
    assert torch.equal(further, labels)


@pytest.mark.parametrize("threshold", [0.3, 0.5])
def test_one_channel_has_a_threshold(threshold):
    logits = torch.randn(2, 1, 9, 7, dtype=torch.float64)
    steps = [Resize((31, 40))]
    expected = plain(logits, steps).sigmoid() > threshold
    assert torch.equal(resized_labels(logits, steps, threshold=threshold, budget=900), expected[:, 0].long())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_in_half_precision_it_is_nearer_to_the_exact_labels(dtype):
    logits, steps = torch.randn(1, 30, 16, 16).to(dtype), [Resize((64, 64)), Resize((90, 75))]
    exact = plain(logits.double(), steps).argmax(1)
    wrong = (resized_labels(logits, steps) != exact).sum()
    assert wrong <= (plain(logits, steps).argmax(1) != exact).sum() + 1
    assert wrong <= 2


@pytest.mark.parametrize("classes", [3, 255, 256, 400])
def test_the_first_of_equal_logits_wins_and_nan_is_no_class_beyond_the_last(classes):
    logits = torch.randint(3, (1, classes, 20, 20)).double()
    logits[:, :, 0, 0] = torch.nan
    logits[:, :, 0, 1] = -torch.inf
    assert torch.equal(resized_labels(logits), logits.argmax(1))


class Largest(TorchDispatchMode):
    """The most values that a floating tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.numel = max([self.numel, *(x.numel() for x in tree_leaves(result) if isinstance(x, Tensor))])
        return result


def test_nothing_of_full_size_exists():
    logits, steps = torch.randn(2, 30, 16, 16), [Resize((128, 128)), Crop(0, 3, 0, 5), Resize((200, 150))]
    with Largest() as largest:
        resized_labels(logits, steps, budget=2**16)
    assert largest.numel <= 2 * 200 * 150


@pytest.mark.parametrize("steps", [[], [Crop(1, 2, 3, 4), Flip("vertical"), Resize((50, 71))], [Resize((4, 5))]])
def test_mean_over_windows(steps):
    places = [(0, 0), (0, 15), (12, 0), (12, 15), (7, 9)]
    total, count = torch.zeros(2, 6, 32, 40, dtype=torch.float64), torch.zeros(1, 1, 32, 40, dtype=torch.float64)
    parts = []
    for top, left in places:
        small, resize = torch.randn(2, 6, 5, 6, dtype=torch.float64), Resize((20, 25))
        parts.append((ResizedLogits(small, [resize]), top, left))
        total[:, :, top : top + 20, left : left + 25] += plain(small, [resize])
        count[:, :, top : top + 20, left : left + 25] += 1
    expected = plain(total / count, steps)
    windows = ResizedLogits(Windows(parts, (32, 40)), steps)
    torch.testing.assert_close(windows.rows(torch.arange(expected.shape[2])), expected, rtol=1e-12, atol=1e-12)
    assert_labels(resized_labels(windows.image(1), budget=2000), expected[1:], 1e-12)
    assert torch.equal(resized_labels(windows.logits, steps), resized_labels(windows))


@pytest.mark.parametrize("classes", [1, 5])
def test_mean_of_softmax_over_views(classes):
    size = Resize((40, 33))
    chains: list[list[Step]] = [[size], [Resize((64, 64)), Crop(0, 3, 0, 9), size], [Flip("horizontal"), size]]
    logits = [torch.randn(2, classes, *small, dtype=torch.float64) for small in [(8, 7), (16, 16), (8, 7)]]
    mean = sum(plain(one, steps).softmax(1) for one, steps in zip(logits, chains, strict=True)) / 3
    found = averaged_labels([ResizedLogits(*view) for view in zip(logits, chains, strict=True)], budget=3000)
    assert torch.equal(found, mean.argmax(1))


def test_views_of_different_sizes_are_an_error():
    with pytest.raises(ValueError, match="views must give one shape"):
        averaged_labels([ResizedLogits(torch.randn(1, 3, 4, 4)), ResizedLogits(torch.randn(1, 3, 5, 4))])
    with pytest.raises(ValueError, match="views must give one shape"):
        averaged_labels([])


def test_rows_are_added_strip_by_strip():
    logits, total = torch.randn(2, 3, 4, 5, dtype=torch.float64), torch.ones(2, 3, 12, 15, dtype=torch.float64)
    ResizedLogits(logits, [Resize((12, 15))]).add_to(total)
    torch.testing.assert_close(total, 1 + plain(logits, [Resize((12, 15))]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(logits=torch.randn(5, 4, 4)), r"logits must be \(B, C, h, w\)"),
        (dict(logits=torch.zeros(1, 5, 4, 4, dtype=torch.int64)), "not torch.int64"),
        (dict(steps=[Crop(top=4)]), "leaves nothing"),
        (dict(steps=[Crop(top=-1)]), "less than nothing"),
        (dict(steps=[Resize((0, 3))]), "leaves nothing"),
        (dict(steps=[Flip("diagonal")]), "diagonal"),
        (dict(threshold=0.5), "threshold=0.5 of 5 channels"),
        (dict(logits=torch.randn(1, 1, 4, 4)), "threshold=None of 1 channels"),
    ],
)
def test_what_does_not_fit_is_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        resized_labels(**{**dict(logits=torch.randn(2, 5, 4, 4)), **change})


@pytest.mark.parametrize(
    ("places", "message"),
    [([], "no windows"), ([(0, 0)], "do not cover"), ([(0, 0), (0, 5)], "is not within"), ([(0, -1)], "not within")],
)
def test_windows_that_do_not_fit_are_an_error(places, message):
    part = ResizedLogits(torch.randn(1, 2, 4, 4))
    with pytest.raises(ValueError, match=message):
        Windows([(part, *place) for place in places], (4, 8))
