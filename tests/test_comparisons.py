"""Comparisons of the other tests see every difference."""

import pytest
import torch
from helpers.comparisons import assert_same, assert_same_checkpoint, changed_rows

ONE = torch.tensor([1.0, 0.0])


@pytest.mark.parametrize(
    ("other", "how", "message"),
    [
        (dict(a=torch.tensor([1.0, -0.0])), {}, "up to 0.0 apart"),
        (dict(a=ONE.double()), {}, "float32 of .* and torch.float64"),
        (dict(a=ONE[None]), {}, r"of \(2,\) and .* of \(1, 2\)"),
        (dict(a=ONE + 0.1), dict(tolerance=0.05), "up to 0.1"),
        (dict(a=ONE * torch.nan), dict(tolerance=0.05), "up to nan"),
        (dict(a=ONE, more=ONE), {}, "in one alone"),
        (dict(a=[1.0, 0.0]), {}, "Tensor and list"),
        ({}, {}, "in one alone"),
    ],
)
def test_other_tensors_differ(other: dict, how: dict, message: str) -> None:
    with pytest.raises(AssertionError, match=message):
        assert_same(dict(a=ONE), other, **how)


def test_order_plain_values_and_nothing_at_all() -> None:
    one, turned = dict(a=ONE, b=[dict(lr=0.1)]), dict(b=[dict(lr=0.1)], a=ONE)
    assert_same(one, turned)
    for other, how in ((turned, dict(ordered=True)), (dict(a=ONE, b=[dict(lr=0.2)]), {}), (dict(a=ONE, b=[]), {})):
        with pytest.raises(AssertionError, match="1 differences"):
            assert_same(one, other, **how)
    with pytest.raises(AssertionError, match="no tensor to compare"):
        assert_same({}, {})


def test_equal_bits_are_the_same_however_they_lie() -> None:
    assert_same(dict(a=ONE * torch.nan, b=torch.ones(2, 3).T), dict(a=ONE * torch.nan, b=torch.ones(3, 2)))
    assert_same(dict(a=ONE), dict(a=ONE + 0.01), tolerance=0.05)


def test_parts_of_checkpoints_and_their_iteration() -> None:
    one = dict(meta=dict(iter=1), state_dict=dict(a=ONE), optimizer=dict(lr=1))
    assert_same_checkpoint(one, {**one, "optimizer": dict(lr=2)}, ("state_dict",))
    for other in ({**one, "optimizer": dict(lr=2)}, {**one, "meta": dict(iter=2)}):
        with pytest.raises(AssertionError):
            assert_same_checkpoint(one, other, ("state_dict", "optimizer"))


def test_rows_that_changed() -> None:
    before = dict(scalar=torch.tensor(1), matrix=torch.zeros(3, 2), same=ONE)
    assert changed_rows(before, dict(scalar=torch.tensor(2), matrix=torch.eye(3, 2), same=ONE)) == dict(
        scalar=[0], matrix=[0, 1]
    )
