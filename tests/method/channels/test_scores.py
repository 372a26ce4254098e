"""Scores of channels: as computed by hand, by plain autograd in float64, and nothing left behind."""

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers.comparisons import assert_same, clone
from helpers.nets import TinyNet, tiny_vit
from torch import Tensor, nn

from apla_mm.method import adapt, find_projections, merge, select_channels
from apla_mm.method.channels.scores import gradient_statistics, row_norms, scores_of, scoring_copy

PROJECTIONS = ["blocks.0.attn.proj", "blocks.1.attn.proj"]
HOW = ["gradient", "fisher"]


def batches(count: int = 3, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(7)
    return [(torch.randn(4, 3, 32, 32, generator=generator).to(dtype), torch.arange(4)) for _ in range(count)]


def loss(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1])


def backward(model: nn.Module, batch: Any) -> None:
    loss(model, batch).backward()


def by_hand(model: nn.Module, how: str) -> dict[str, Tensor]:
    """Scores of a plain model."""
    weights = [model.get_parameter(f"{name}.weight") for name in PROJECTIONS]
    each = [torch.autograd.grad(loss(model, batch), weights) for batch in batches()]
    stacked = [torch.stack(gradients) for gradients in zip(*each, strict=True)]
    if how == "gradient":
        return {n: g.mean(0).square().sum(1).sqrt() for n, g in zip(PROJECTIONS, stacked, strict=True)}
    return {n: g.square().mean(0).sum(1) for n, g in zip(PROJECTIONS, stacked, strict=True)}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize(
    "options",
    [
        None,
        dict(r=3),
        dict(r=3, recompute="block"),
        dict(r="full"),
        dict(r=3, trainable=["head.*"]),
        dict(blocks="none"),
    ],
    ids=str,
)
def test_gradients_scores_are_those_of_the_plain_model_however_it_is_adapted(how: str, options: Any) -> None:
    model = tiny_vit().double()
    expected = by_hand(model, how)
    if options is not None:
        adapt(model, **options)
    found = gradient_statistics(scoring_copy(model), PROJECTIONS, how, batches(), backward)
    for name in PROJECTIONS:
        torch.testing.assert_close(scores_of(how, found[name]), expected[name], rtol=1e-9, atol=1e-18)


@pytest.mark.parametrize("how", HOW)
def test_lists_are_the_largest_scores(how: str) -> None:
    model = tiny_vit().double()
    expected = {name: sorted(s.argsort(descending=True)[:5].tolist()) for name, s in by_hand(model, how).items()}
    assert select_channels(model, 5, how, batches(), loss) == expected
    report = adapt(model, channels=expected)
    assert [list(p.channels) for p in report.projections] == list(expected.values())


def test_the_two_of_gradients_differ() -> None:
    model = tiny_vit().double()
    one, other = (select_channels(model, 5, how, batches(), loss) for how in HOW)
    assert one != other


def test_magnitude_is_the_norm_of_rows_as_they_are_now() -> None:
    model = tiny_vit()
    linear = model.blocks[0].attn.proj
    expected = linear.weight.detach().double().square().sum(1).sqrt()
    torch.testing.assert_close(row_norms(linear).double(), expected)
    adapt(model, r=3)
    with torch.no_grad():
        linear.trained.weight.fill_(2)  # what an optimizer writes
    expected[linear.trained.channels] = 2 * 32**0.5
    torch.testing.assert_close(row_norms(linear).double(), expected)


@pytest.mark.parametrize("how", HOW)
def test_a_model_with_statistics_and_dropout_stays_as_it_was(how: str) -> None:
    model = TinyNet(tiny_vit(num_classes=0, proj_drop_rate=0.3, drop_path_rate=0.2)).train()
    adapt(model, r=3, trainable=["head.*"])
    state, trains = clone(model.state_dict()), [p.requires_grad for p in model.parameters()]
    drawn = torch.get_rng_state()
    data = batches(dtype=torch.float32)
    lists = select_channels(model, 3, how, data, loss)
    assert torch.equal(torch.get_rng_state(), drawn)
    assert_same(clone(model.state_dict()), state)
    assert [p.requires_grad for p in model.parameters()] == trains
    assert all(p.grad is None for p in model.parameters())
    assert select_channels(model, 3, how, data, loss) == lists


def test_attention_of_torch_itself() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, dtype=torch.float64)
    model = nn.Sequential(nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(16, 3).double())
    data = [torch.randn(2, 5, 16, dtype=torch.float64) for _ in range(2)]

    def mean_square(model: nn.Module, x: Tensor) -> Tensor:
        return (model(x) - 1).square().mean()

    projections = find_projections(model)
    weights = [p.linear.weight for p in projections]
    each = [torch.autograd.grad(mean_square(model, x), weights) for x in data]
    expected = {
        p.name: sorted(torch.stack(g).square().mean(0).sum(1).argsort(descending=True)[:4].tolist())
        for p, g in zip(projections, zip(*each, strict=True), strict=True)
    }
    adapted = copy.deepcopy(model)
    adapt(adapted, r=2)
    assert select_channels(model, 4, "fisher", data, mean_square) == expected
    assert select_channels(merge(adapted), 4, "fisher", data, mean_square) == expected


def test_held_weights_score_as_plain_ones() -> None:
    model = tiny_vit()
    data = batches(dtype=torch.float32)
    expected = select_channels(model, 4, "fisher", data, loss)
    adapt(model, r=4, frozen_dtype="bfloat16")
    assert select_channels(model, 4, "fisher", data, loss) == expected


def test_no_batch_no_gradient_and_no_number_are_errors() -> None:
    model = tiny_vit()
    with pytest.raises(ValueError, match="selection='fisher' is by gradients of batches, and there is no batch"):
        select_channels(model, 4, "fisher", [], loss)
    with pytest.raises(ValueError, match=r"batch 1 gives 'blocks.1.attn.proj' no gradient.*blocks=\[\.\.\.\]"):
        select_channels(model, 4, "gradient", [torch.randn(2, 3, 32, 32)], first_block)
    with pytest.raises(ValueError, match=r"batch 2 gives 'blocks.0.attn.proj' a gradient that is not finite"):
        images, labels = batches(1, torch.float32)[0]
        select_channels(model, 4, "gradient", [(images, labels), (images * float("nan"), labels)], loss)
    with torch.no_grad():
        model.blocks[1].attn.proj.weight[0] = float("nan")
    with pytest.raises(ValueError, match="projection 'blocks.1.attn.proj' has channels whose score is not finite"):
        select_channels(model, 4, "magnitude")


def test_a_model_that_cannot_be_copied_is_an_error() -> None:
    model = tiny_vit()
    model.frames = (i for i in range(3))
    with pytest.raises(ValueError, match=r"a copy of the model, which cannot be made \(TypeError.*channels=\.\.\."):
        select_channels(model, 4, "fisher", batches(), loss)


def first_block(model: Any, images: Tensor) -> Tensor:
    return model.blocks[0](model.patch_embed(images)).square().mean()
