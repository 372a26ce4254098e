"""Deltas on and off a model: against models of their own, to the bit."""

import contextlib
import copy
import gc
import weakref

import pytest
import torch
from torch import nn

import apla_mm
from apla_mm.delta import BaseMismatchError, DeltaError, extract_delta
from apla_mm.tasks.fitted import FittedDelta, part_of, put_heads

PROJ = "backbone.blocks.0.attn.proj"


def fit(model, delta, **options):
    return FittedDelta(model, delta, "'a'", **{"check_base": True, "allow_nonfinite": False, **options})


@pytest.mark.parametrize("adapt", [{"r": "full"}, {"trainable": ["*norm*", "backbone.pos_embed", "head.*"]}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whole_tensors(base, clone, assert_same, adapt, dtype):
    base.to(dtype)
    trained = copy.deepcopy(base)
    apla_mm.adapt(trained, **{"r": 2, **adapt})
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    trained.norm.num_batches_tracked += 3
    before = clone(base)
    with apla_mm.task(base, extract_delta(trained)):
        assert_same(base.state_dict(), trained.state_dict())
    assert_same(base.state_dict(), before)


def test_a_switch_writes_to_what_the_delta_has_alone(base, tasks):
    (delta, _), _, _ = tasks
    fitted = fit(base, delta)
    versions = {name: tensor._version for name, tensor in base.state_dict(keep_vars=True).items()}
    with fitted.on(base):
        pass
    written = {name for name, tensor in base.state_dict(keep_vars=True).items() if tensor._version != versions[name]}
    assert written == {*delta.rows, *delta.tensors}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside(base, tasks, images, clone, assert_same, error):
    (delta, _), _, (output, _) = tasks
    before = clone(base)
    with pytest.raises(error), apla_mm.task(base, delta):
        raise error
    assert_same(base.state_dict(), before)
    with apla_mm.task(base, delta), torch.no_grad():
        assert torch.equal(base(images), output)


@pytest.mark.parametrize("after", [0, 4, 8, 9, 13, 20])
def test_ctrl_c_while_switching(base, tasks, clone, assert_same, monkeypatch, after):
    (delta, _), _, _ = tasks
    apla_mm.adapt(base, r=4)
    before = clone(base)
    block = apla_mm.task(base, delta)
    calls = 0

    def failing(original):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == after + 1:
                raise KeyboardInterrupt
            return original(*args)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("apla_mm.PartialLinear.sync", lambda self: None)
        for name in ("copy_", "index_copy_"):
            patch.setattr(torch.Tensor, name, failing(getattr(torch.Tensor, name)))
        with pytest.raises(KeyboardInterrupt), block:
            pass
    assert calls > after
    assert_same(base.state_dict(), before)
    with apla_mm.task(base, delta):
        assert not torch.equal(base.head.weight, before["head.weight"])


def test_adding_leaves_no_trace(base, tasks, train, as_kind, assert_same):
    """In the rows that train, before any forward brings them up to date."""
    deltas, _, _ = tasks
    model = as_kind("adapted", base)
    train(model)
    before = copy.deepcopy(model)
    fit(model, deltas[0])
    trained = {name: rows for name, rows in before.named_parameters() if ".trained." in name}
    assert len(trained) == 4
    for name, rows in trained.items():
        assert torch.equal(model.get_parameter(name), rows), name
    assert_same(model.state_dict(), before.state_dict())


def test_steps_that_no_forward_has_seen_yet_survive(base, tasks, train, as_kind, assert_same):
    (delta, _), (state, _), _ = tasks
    for model in (models := [as_kind("adapted", copy.deepcopy(base)) for _ in range(2)]):
        train(model, seed=7)
    switched, reference = models
    with apla_mm.task(switched, delta):
        pass  # its base is compared by what did not train: head and rows may have moved
    for model in models:
        with torch.no_grad():
            model.get_submodule(PROJ).trained.weight.add_(1)  # an optimizer's step, not in the full weight so far
    with apla_mm.task(switched, delta):
        assert_same(switched.state_dict(), state)
    for model in models:
        train(model, seed=8)
    assert_same(switched.state_dict(), reference.state_dict())
    assert torch.equal(switched.get_submodule(PROJ).trained.weight, reference.get_submodule(PROJ).trained.weight)


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_backward_across_an_edge_is_refused(base, tasks, images, as_kind, kind):
    (delta, _), _, _ = tasks
    model = as_kind(kind, base)
    x = images.clone().requires_grad_()
    block = apla_mm.task(model, delta)
    outside = model(x).sum()
    with block:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            outside.backward()
        model(x).sum().backward()
        assert x.grad is not None
        inside = model(x).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        inside.backward()
    model(x).sum().backward()


def optimizer_step(model, images):
    parameter = next(p for p in model.head.parameters() if p.requires_grad)
    torch.optim.SGD([parameter], lr=1.0).step(lambda: parameter.square().sum().backward() or 0.0)


@torch.no_grad()
def write_to_rows(model, images):
    model.get_submodule(PROJ).trained.weight.add_(1)


def steps(model, images):
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


WRITES = {
    "optimizer": optimizer_step,
    "statistics of the norm": lambda model, images: model.train()(images),
    "load_state_dict": lambda model, images: model.load_state_dict({n: t + 1 for n, t in model.state_dict().items()}),
    "training": steps,
    "compiled training": lambda model, images: steps(torch.compile(model, backend="aot_eager"), images),
    "rows": write_to_rows,
}


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("error", [None, ValueError])
def test_what_the_task_has_is_put_back_whatever_is_written_inside(base, tasks, images, clone, write, error):
    (delta, _), _, _ = tasks
    apla_mm.adapt(base, r=3, seed=4, trainable=["head.*"])  # other channels than the delta's
    before = clone(base)
    torch._dynamo.reset()
    told = pytest.raises(error) if error else contextlib.nullcontext()
    with told, fit(base, delta).on(base):
        WRITES[write](base, images)
        if error:
            raise error
    after = clone(base)
    for name in delta.tensors:
        assert torch.equal(after[name], before[name]), name
    for name in delta.rows:
        chosen = delta.channels_of(name)
        assert torch.equal(after[name][chosen], before[name][chosen]), name
    proj = base.get_submodule(PROJ)  # and what trains follows
    assert torch.equal(proj.trained.weight, proj.weight[proj.trained.channels])


def test_modules_that_are_replaced_inside_stay(base, tasks, clone, assert_same):
    (delta, _), _, _ = tasks
    before = clone(base)
    old = base.head
    for head in (nn.Linear(32, 5), nn.Linear(32, 7)):
        base.head = old
        new = clone(head)
        with fit(base, delta).on(base):
            base.head = head
        assert_same(clone(head), new)
        assert_same(clone(old), {name: before[f"head.{name}"] for name in new})
        base.head = old
        assert_same(base.state_dict(), before)
    with apla_mm.task(base, delta):
        base.norm.weight = nn.Parameter(torch.zeros(7))
    assert_same(base.state_dict(), {**before, "norm.weight": torch.zeros(7)})


def test_tensors_that_are_replaced_between_blocks(base, tasks, clone, assert_same):
    (delta, _), (state, _), _ = tasks
    fitted = fit(base, delta)
    base.load_state_dict(clone(base), assign=True)
    for parameter in base.parameters():
        parameter.data = parameter.data.clone()
    assert not fitted.is_stale(base)
    before = clone(base)
    with fitted.on(base):
        assert_same(base.state_dict(), state)
    assert_same(base.state_dict(), before)


def replace_head(model):
    old, model.head = model.head, copy.deepcopy(model.head)
    return old


def replace_backbone(model):
    old, model.backbone = model.backbone, copy.deepcopy(model.backbone)
    return old


@pytest.mark.parametrize(
    "change",
    [
        replace_head,
        replace_backbone,
        lambda model: delattr(model, "head"),
        lambda model: setattr(model.norm, "weight", None),
        lambda model: setattr(model.norm, "weight", nn.Parameter(torch.zeros(7))),
        lambda model: delattr(model.norm, "running_mean"),
        lambda model: model.half(),
        lambda model: model.head.double(),
    ],
)
def test_a_model_that_it_does_not_fit_any_more(base, tasks, clone, assert_same, change):
    (delta, _), _, _ = tasks
    fitted = fit(base, delta)
    assert not fitted.is_stale(base)
    kept = change(base)  # what was replaced is still there for others
    assert fitted.is_stale(base)
    now = clone(base)
    with pytest.raises(DeltaError, match="task 'a': '.* in the model were replaced .*: add it again"), fitted.on(base):
        raise AssertionError
    assert_same(base.state_dict(), now)
    del kept


def test_what_it_checks(base, tasks):
    (delta, other), _, _ = tasks
    assert fit(base, delta).nbytes == delta.nbytes
    assert fit(base, delta).checked and not fit(base, delta, check_base=False).checked
    with torch.no_grad():
        base.backbone.pos_embed[0, 0, 0] += 1
    with pytest.raises(BaseMismatchError, match="1 differ: 'backbone.pos_embed'"):
        fit(base, delta)
    fit(base, delta, check_base=False)
    other.tensors["head.bias"].fill_(torch.inf)
    with pytest.raises(DeltaError, match="task 'a': there is NaN or infinity in 'head.bias'"):
        fit(base, other, check_base=False)
    fit(base, other, check_base=False, allow_nonfinite=True)
    with pytest.raises(DeltaError, match="are not in the target"):
        fit(nn.Linear(2, 2), delta)


def test_one_tensor_in_two_places(base, clone, assert_same, as_kind):
    def tie(model):
        model.backbone.blocks[1].attn.proj.weight = model.backbone.blocks[0].attn.proj.weight
        return model

    base.copy = nn.Linear(32, 5)
    base.copy.weight = base.head.weight
    base.backbone.blocks[1].attn.proj.load_state_dict(base.backbone.blocks[0].attn.proj.state_dict())
    trained, adapted = copy.deepcopy(base), as_kind("adapted", copy.deepcopy(base))
    apla_mm.adapt(trained, channels={f"backbone.blocks.{i}.attn.proj": [1, 4] for i in range(2)}, trainable=["head.*"])
    for model in (base, trained, adapted):  # adapt refuses projections that are so before
        tie(model)
    with torch.no_grad():
        trained.head.weight.add_(1)
    delta, before = extract_delta(trained), clone(base)
    for model in (base, adapted):
        with apla_mm.task(model, delta):
            assert_same(model.state_dict(), trained.state_dict())
        assert_same(model.state_dict(), before)


def test_models_are_not_kept_alive(base, tasks, trained_from):
    (delta, _), _, _ = tasks
    model = copy.deepcopy(base)
    fitted = fit(model, delta)
    for model in (copy.deepcopy(base), copy.deepcopy(base)):
        apla_mm.adapt(model, r=3, trainable=["backbone.pos_embed"])
        with apla_mm.task(model, delta):
            pass
    delta = extract_delta(trained_from(base, 3))
    with apla_mm.task(base, delta):
        pass
    references = weakref.ref(model), weakref.ref(delta)
    del model, delta
    gc.collect()
    assert [reference() for reference in references] == [None, None]
    assert fitted.is_stale(base)  # of a model that is gone


def test_part_of_a_delta(tasks):
    (delta, _), _, _ = tasks
    part = part_of(delta, "backbone.")
    assert part.channels.keys() == {name.removeprefix("backbone.") for name in delta.channels} and not part.tensors
    assert all(torch.equal(part.rows[name.removeprefix("backbone.")], rows) for name, rows in delta.rows.items())
    assert part.header.base == {n.removeprefix("backbone."): d for n, d in delta.header.base.items()}
    assert part_of(delta, "").names == delta.names
    with pytest.raises(DeltaError, match="nothing below prefix='encoder.': its names look like 'backbone.blocks"):
        part_of(delta, "encoder.")


def test_heads_are_put_in_once_and_for_good(base, tasks, clone, assert_same):
    (delta, _), (state, _), _ = tasks
    before = clone(base)
    heads = put_heads(base, delta, "backbone.")
    assert heads.keys() == delta.tensors.keys()
    assert all(tensor.data_ptr() == base.state_dict()[name].data_ptr() for name, tensor in heads.items())
    assert_same(base.state_dict(), {name: before[name] if "backbone" in name else state[name] for name in before})
