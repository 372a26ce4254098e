"""What is computed again gives the same to the bit, and keeps less."""

import contextlib
import copy
import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from apla_mm.dense.recompute import _is_kept, last_layer, recomputed
from apla_mm.measure.saved_tensors import SavedTensors


class Head(nn.Module):
    def __init__(self, dropout: float = 0.3) -> None:
        super().__init__()
        stages = []
        for _ in range(3):
            stages += [nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Upsample(scale_factor=2)]
        self.stages = nn.Sequential(*stages)
        self.dropout = nn.Dropout2d(dropout)
        self.last = nn.Conv2d(8, 20, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(self.stages(x))
        with last_layer():
            return self.last(x)


def step(head: Head, x: Tensor, again: bool) -> list[Tensor]:
    torch.manual_seed(1)
    x = x.clone().requires_grad_()
    y = recomputed(head, x, part=head) if again else head(x)
    y.square().mean().backward()
    return [y, x.grad, *(p.grad for p in head.parameters()), *head.state_dict().values()]  # type: ignore[list-item]


def test_outputs_gradients_and_statistics_to_the_bit() -> None:
    head = Head().train()
    head.stages[1].momentum = None  # type: ignore[union-attr]  # the mean of all batches
    other, x = copy.deepcopy(head), torch.randn(2, 8, 6, 5)
    for _ in range(2):
        pairs = zip(step(head, x, False), step(other, x, True), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    assert other.stages[1].momentum is None and other.stages[5].momentum == 0.1  # type: ignore[union-attr]


def test_frozen_statistics_and_no_gradient() -> None:
    head, x = Head(0).eval(), torch.randn(1, 8, 4, 4)
    before = copy.deepcopy(head.state_dict())
    with torch.no_grad():
        assert torch.equal(recomputed(head, x, part=head), head(x))
    assert all(torch.equal(a, b) for a, b in zip(before.values(), head.state_dict().values(), strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_under_autocast(dtype: torch.dtype) -> None:
    head = Head().train()
    other, x = copy.deepcopy(head), torch.randn(2, 8, 6, 5)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        pairs = zip(step(head, x, False), step(other, x, True), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_convolutions_outputs_alone_are_kept() -> None:
    """Counted by what is alive: what a checkpoint keeps is no saved tensor."""
    head, x = Head().train(), torch.randn(1, 8, 16, 16, requires_grad=True)

    def alive() -> dict[int, int]:
        """Bytes of each storage by its address; of tensors with values, since other tests leave others."""
        gc.collect()
        plain = [one for one in gc.get_objects() if type(one) is Tensor and one.device.type == "cpu"]
        found = {}
        for one in plain:
            with contextlib.suppress(RuntimeError):
                found[one.untyped_storage().data_ptr()] = one.untyped_storage().nbytes()
        return found

    own = {p.untyped_storage().data_ptr() for p in (*head.parameters(), *head.buffers(), x)}
    before = alive()
    y: Any = recomputed(head, x, part=head)
    own |= {y.untyped_storage().data_ptr(), *before}
    kept = sum(size for place, size in alive().items() if place not in own)
    convolutions = 8 * 4 * sum(side * side for side in (16, 32, 64))
    assert convolutions <= kept < 1.05 * convolutions + 2**14
    with SavedTensors(ignore=[*head.parameters(), *head.buffers()]) as saved:
        y = head(x)
    assert saved.bytes - y.untyped_storage().nbytes() > 3 * kept


class Written(nn.Module):
    """Convolutions and products that are written to in place, through views too."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)
        self.norm = nn.InstanceNorm2d(8, affine=True, track_running_stats=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.first(x).mul_(0.5))
        x = x + self.second(x).relu_()
        tokens = x.flatten(2).mT
        scores = torch.matmul(tokens, tokens.mT)  # as mmcv's NonLocal2d
        scores /= 2
        return (scores.softmax(-1) @ tokens).mT.unflatten(2, x.shape[2:])


def test_outputs_that_are_written_to_in_place_are_computed_again() -> None:
    part, x = Written().train(), torch.randn(2, 8, 4, 5)
    results = []
    for again in (False, True):
        one = copy.deepcopy(part)
        given = x.clone().requires_grad_()
        y = recomputed(one, given, part=one) if again else one(given)
        for _ in range(2):  # a graph that is kept is computed again twice
            y.square().sum().backward(retain_graph=True)
        results.append([y, given.grad, *(p.grad for p in one.parameters()), *one.state_dict().values()])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def test_an_output_that_is_written_to_afterwards_is_an_error() -> None:
    convolution = nn.Conv2d(8, 8, 1)

    def function(x: Tensor) -> tuple[Tensor, Tensor]:
        y = convolution(x)
        return y, y.sigmoid()

    y, z = recomputed(function, torch.randn(1, 8, 4, 4, requires_grad=True), part=convolution)
    with torch.no_grad():
        y.mul_(2)
    with pytest.raises(RuntimeError, match="written to in place before backward"):
        z.sum().backward()


def test_attention_that_draws_random_numbers_is_not_kept() -> None:
    operator = torch.ops.aten._scaled_dot_product_flash_attention.default
    assert _is_kept(operator, (None, None, None), {})
    assert not _is_kept(operator, (None, None, None, 0.1), {})
    assert not _is_kept(operator, (None, None, None), dict(dropout_p=0.1))


def test_compiled_it_is_the_same() -> None:
    head = Head(0.0).train()
    other, x = copy.deepcopy(head), torch.randn(2, 8, 6, 5)
    compiled = torch.compile(lambda x: recomputed(other, x, part=other), backend="aot_eager")
    found = []
    for function in (head, compiled):
        given = x.clone().requires_grad_()
        function(given).square().mean().backward()
        found.append(given.grad)
    torch.testing.assert_close(*found)
    for value, own in zip(head.state_dict().values(), other.state_dict().values(), strict=True):
        torch.testing.assert_close(own, value)
