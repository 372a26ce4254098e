from typing import Any

import pytest
import torch
from helpers.nets import tiny_vit

from apla_mm.method import adapt, select_channels


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (dict(r=4, selection="random"), r"needs no scores: adapt\(model, r=\.\.\., seed=\.\.\.\)"),
        (dict(r=4, selection="best"), "must be one of 'random', 'magnitude', 'gradient', 'fisher'"),
        (dict(r=4, selection="fisher"), r"needs batches and loss=\.\.\."),
        (dict(r=4, selection="magnitude", loss=lambda model, batch: model(batch)), "leave loss out"),
        (dict(r="full", selection="magnitude"), "r='full' is given, which trains all"),
        (dict(r=33, selection="magnitude"), "does not fit projection 'blocks.0.attn.proj' with 32"),
        (dict(r=4, selection="magnitude", blocks="none"), "blocks='none' adapts no projection"),
    ],
)
def test_arguments_that_do_not_fit_are_errors(arguments: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        select_channels(tiny_vit(), **arguments)


def test_blocks_are_those_of_adapt() -> None:
    model = tiny_vit()
    lists = select_channels(model, 0.25, "magnitude", blocks=1)
    norms = model.blocks[1].attn.proj.weight.norm(dim=1)
    assert lists == {"blocks.1.attn.proj": sorted(norms.argsort(descending=True)[:8].tolist())}
    report = adapt(model, channels=lists, blocks=1)
    assert [list(p.channels) for p in report.projections] == list(lists.values())


def test_adapt_chooses_by_magnitude_itself() -> None:
    model = tiny_vit()
    lists = select_channels(model, 4, "magnitude")
    report = adapt(model, 4, selection="magnitude")
    assert {p.name: list(p.channels) for p in report.projections} == lists
    assert (report.arguments["selection"], report.arguments["seed"]) == ("magnitude", None)
    assert all(torch.equal(m.trained.weight, m.weight[m.trained.channels]) for m in [model.blocks[0].attn.proj])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (dict(r=4, selection="fisher"), r"channels=apla_mm\.select_channels\(model, r, 'fisher', batches, loss\)"),
        (dict(r=4, selection="magnitude", seed=0), "seed=0 draws channels, and selection='magnitude' scores them"),
        (dict(selection="magnitude", channels={}), "channels are listed: leave one of them out"),
        (dict(selection="magnitude"), "no r is given"),
        (dict(r=1.0, selection="magnitude"), "r=1.0 is given, which trains all"),
        (dict(selection="magnitude", blocks="none"), "blocks='none' adapts no projection"),
    ],
)
def test_adapt_refuses_what_nothing_reads(arguments: dict[str, Any], told: str) -> None:
    model = tiny_vit()
    before = [type(module) for module in model.modules()]
    with pytest.raises(ValueError, match=told):
        adapt(model, **arguments)
    assert [type(module) for module in model.modules()] == before
    assert all(p.requires_grad for p in model.parameters())
