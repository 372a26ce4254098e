import copy

import pytest
import torch
from helpers.comparisons import assert_same, clone
from helpers.nets import tiny_vit

from apla_mm.method import adapt, merge
from apla_mm.method.channels.late_channels import adapt_before_loading, awaiting, choose_channels
from apla_mm.method.channels.selection import Selection
from apla_mm.method.channels.trained import channels_of

LISTS = {"blocks.0.attn.proj": [1, 7, 30], "blocks.1.attn.proj": [0, 4, 5]}


def test_channels_chosen_later_train_as_those_that_were_listed() -> None:
    late, listed = tiny_vit(), tiny_vit()
    report = adapt_before_loading(late, r=3, selection=dict(type="fisher", batches=2), trainable=["head.*"])
    assert report.arguments["selection"] == dict(type="fisher", batches=2)
    assert awaiting(late) == {Selection("fisher", 2): list(LISTS)}
    parameters = [p for p in late.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.1)
    late.load_state_dict(listed.state_dict())
    average = copy.deepcopy(late)
    for model in (late, average):
        choose_channels(model, LISTS)
        assert not awaiting(model) and channels_of(model) == LISTS
    assert report.with_channels_of(late).projections == adapt(listed, channels=LISTS, trainable=["head.*"]).projections
    assert list(map(id, parameters)) == [id(p) for p in late.parameters() if p.requires_grad]

    other = torch.optim.AdamW([p for p in listed.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    for step in range(2):
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        for model, stepped in ((late, optimizer), (listed, other)):
            stepped.zero_grad()
            model(images).square().mean().backward()
            stepped.step()
    assert_same(clone(merge(late).state_dict()), clone(merge(listed).state_dict()))


def test_what_trained_before_stays_in_the_weights() -> None:
    model = tiny_vit()
    adapt(model, channels=LISTS)
    with torch.no_grad():
        model.blocks[0].attn.proj.trained.weight.add_(1)
    expected = clone(model.state_dict())
    choose_channels(model, {name: [10, 11, 12] for name in LISTS})
    assert_same(clone(model.state_dict()), expected)
    assert_same(clone(merge(model).state_dict()), expected)


def test_a_model_that_still_awaits_its_channels_runs_and_does_not_train() -> None:
    model = tiny_vit()
    adapt_before_loading(model, r=3, selection="magnitude")
    images = torch.randn(1, 3, 32, 32)
    with pytest.raises(RuntimeError, match=r"selection='magnitude' before training.*dict\(type='APLAHook'\)"):
        model.train()(images)
    with torch.no_grad():
        model(images)
    model.eval()(images)


def test_lists_that_do_not_fit_change_nothing() -> None:
    model = tiny_vit()
    adapt_before_loading(model, r=3, selection="fisher")
    before = channels_of(model)
    for lists, told in (
        (
            {**LISTS, "blocks.1.attn.proj": [1]},
            "1 channels are listed for .*, of which 3 train: set r",
        ),
        ({**LISTS, "blocks.1.attn.proj": [1, 2, 99]}, r"channels \[99\] of projection 'blocks.1.attn.proj'"),
        ({**LISTS, "blocks.1.mlp.fc1": [1, 2, 3]}, "'blocks.1.mlp.fc1', which is no projection of which some"),
    ):
        with pytest.raises(ValueError, match=told):
            choose_channels(model, lists)
        assert channels_of(model) == before and awaiting(model)
