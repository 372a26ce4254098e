"""Models that share one backbone, each with its task's heads."""

import copy

import pytest
import torch

import apla_mm
from apla_mm.delta import BaseMismatchError, DeltaError, save_delta


@pytest.mark.parametrize("how", ["switch", "task"])
def test_two_models_on_one_backbone(base, two_models, images, clone, assert_same, take_turns, tmp_path, how):
    models, deltas, own = two_models
    before = clone(base.backbone)
    with torch.no_grad():
        outputs = [model(images) for model in own]
    if how == "switch":
        switch = apla_mm.TaskSwitch(base.backbone, prefix="backbone.")
        for i, (model, delta) in enumerate(zip(models, deltas, strict=True)):
            save_delta(delta, tmp_path / f"{i}.safetensors")
            switch.add(str(i), tmp_path / f"{i}.safetensors", whole=model)
            assert_same(base.backbone.state_dict(), before)
            heads = {name: tensor for name, tensor in clone(own[i]).items() if "backbone" not in name}
            assert_same({name: model.state_dict()[name] for name in heads}, heads)
        assert switch.names == ["0", "1"]
    else:
        for model, delta in zip(models, deltas, strict=True):  # their heads are none of the base
            apla_mm.task(model, delta)

    def serve(i):
        def one():
            block = switch(str(i)) if how == "switch" else apla_mm.task(models[i], deltas[i])
            with block, torch.no_grad():
                assert torch.equal(models[i](images), outputs[i]), i

        return one

    for i in (0, 1, 0):
        serve(i)()
        assert_same(base.backbone.state_dict(), before)
    if how == "switch":  # the models' own locks are two
        take_turns([serve(0), serve(1), serve(0)], rounds=60)
        assert_same(base.backbone.state_dict(), before)


def test_one_model_takes_one_task_s_heads(base, tasks, images, make_net, clone, assert_same):
    deltas, _, outputs = tasks
    switch = apla_mm.TaskSwitch(base.backbone, prefix="backbone.")
    switch.add("a", deltas[0], whole=base)
    before = clone(base)
    for whole in (base, torch.compile(base, backend="aot_eager")):
        with pytest.raises(ValueError, match="task 'b': 'head.bias', 'head.weight', .* are those of task 'a' already"):
            switch.add("b", deltas[1], whole=whole)
    assert_same(base.state_dict(), before)
    assert switch.names == ["a"]
    switch.add("b", deltas[1])  # its backbone alone
    other = make_net(base.backbone).eval()
    switch.add("b", deltas[1], whole=other)
    for name, model, output in (("a", base, outputs[0]), ("b", other, outputs[1])):
        with switch(name), torch.no_grad():
            assert torch.equal(model(images), output)
    switch.add("a", deltas[1], whole=base)  # another of that name
    with switch("a"), torch.no_grad():
        assert torch.equal(base(images), outputs[1])


def test_heads_are_not_put_in_where_the_base_is_another(base, two_models, clone, assert_same):
    (model, _), (delta, _), _ = two_models
    with torch.no_grad():
        base.backbone.pos_embed.add_(1)
    before = clone(model)
    switch = apla_mm.TaskSwitch(base.backbone, prefix="backbone.")
    with pytest.raises(BaseMismatchError, match="'backbone.pos_embed'"):
        switch.add("a", delta, whole=model)
    with pytest.raises(BaseMismatchError, match="'pos_embed'"):
        switch.add("a", delta)
    assert_same(model.state_dict(), before)
    assert not switch.names


def test_heads_that_do_not_fit_are_not_put_in(base, two_models, clone, assert_same):
    models, deltas, _ = two_models
    switch = apla_mm.TaskSwitch(base.backbone, prefix="backbone.")
    before = [clone(model) for model in models]
    with pytest.raises(DeltaError, match="head.weight .has the shape .7, 32., not .5, 32."):
        switch.add("a", deltas[0], whole=models[1])
    assert [model.head.out_features for model in models] == [5, 7] and not switch.names
    for model, state in zip(models, before, strict=True):
        assert_same(model.state_dict(), state)


@pytest.mark.parametrize("kind", ["plain", "adapted"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad], ids=lambda m: m.__name__)
def test_all_tasks_in_one_autocast(base, tasks, images, as_kind, kind, mode):
    """Which keeps cast copies of weights that require a gradient."""
    deltas, states, _ = tasks
    model = as_kind(kind, copy.deepcopy(base))
    own = [copy.deepcopy(base) for _ in states]
    for one, state in zip(own, states, strict=True):
        one.load_state_dict(state)
    heads = copy.deepcopy(own[0])
    heads.backbone = copy.deepcopy(base.backbone)
    outputs = []
    for one in (*own, base, heads):
        with torch.autocast("cpu", torch.bfloat16), mode():
            outputs.append(one(images))
    switch = apla_mm.TaskSwitch(model.backbone, prefix="backbone.")
    with torch.autocast("cpu", torch.bfloat16), mode():
        for _ in range(2):
            assert torch.equal(model(images), outputs[2])
            for delta, output in zip(deltas, outputs, strict=False):
                with apla_mm.task(model, delta):
                    assert torch.equal(model(images), output)
        assert torch.equal(model(images), outputs[2])
        switch.add("a", deltas[0], whole=model)  # its heads stay
        assert torch.equal(model(images), outputs[3])
        with switch("a"):
            assert torch.equal(model(images), outputs[0])
