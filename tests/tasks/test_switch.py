"""Tasks that take turns on one base: against models of their own, to the bit."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import distributed, nn

import apla_mm
from apla_mm.delta import BaseMismatchError, Delta, DeltaError, extract_delta, save_delta

pytestmark = pytest.mark.slow

KINDS = ["plain", "adapted", "adapted otherwise", "compiled", "adapted and compiled"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
def test_inside_the_task_and_behind_what_it_was(base, tasks, images, as_kind, clone, assert_same, kind, mode):
    torch._dynamo.reset()
    deltas, states, outputs = tasks
    model = as_kind(kind, copy.deepcopy(base))
    inner = getattr(model, "_orig_mod", model)
    before = clone(base)
    # compiled code rounds otherwise
    check = torch.equal if inner is model else torch.allclose
    with mode():
        plain = base(images)
        assert check(model(images), plain)
        first = [model(images)]
        for i in range(2):
            for j, (delta, state, output) in enumerate(zip(deltas, states, outputs, strict=True)):
                with apla_mm.task(model, delta):
                    assert_same(inner.state_dict(), state)
                    y = model(images)
                assert check(y, output)
                first += [] if i else [y]
                assert torch.equal(y, first[j + 1])
                assert_same(inner.state_dict(), before)
                assert torch.equal(model(images), first[0])


def test_there_and_back_a_thousand_times(base, tasks, clone, assert_same):
    deltas, states, _ = tasks
    apla_mm.adapt(base, r=3, seed=1)
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0], "b": deltas[1]})
    before, addresses = clone(base), [t.data_ptr() for t in base.state_dict().values()]
    for i in range(1000):
        with switch("ab"[i % 2]):
            if i % 100 < 2:
                assert_same(base.state_dict(), states[i % 2])
    assert_same(base.state_dict(), before)
    assert addresses == [t.data_ptr() for t in base.state_dict().values()]


def test_the_base_is_compared_once_for_each_delta(base, tasks, monkeypatch):
    deltas, _, _ = tasks
    calls = []
    original = apla_mm.delta.apply.base_digests
    monkeypatch.setattr("apla_mm.delta.apply.base_digests", lambda *a: calls.append(1) or original(*a))
    for _ in range(3):
        for delta in deltas:
            with apla_mm.task(base, delta):
                pass
            with apla_mm.task(base, delta, check_base=False):
                pass
    with pytest.raises(KeyError), apla_mm.task(base, deltas[0]):
        raise KeyError
    with torch.inference_mode(), apla_mm.task(base, deltas[1]):
        pass
    with apla_mm.task(base, deltas[0]):
        assert len(calls) == 2
    other = copy.deepcopy(base)
    with apla_mm.task(other, deltas[0], check_base=False):
        assert len(calls) == 2
    apla_mm.task(other, deltas[0])
    assert len(calls) == 3
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0]})
    for _ in range(2):
        with switch("a"):
            assert len(calls) == 4
    apla_mm.TaskSwitch(base, {"a": deltas[0]}, check_base=False)
    assert len(calls) == 4


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_what_does_not_fit_is_refused_before_it_is_on(base, tasks, make_net, as_kind, clone, assert_same, kind):
    (delta, _), _, _ = tasks
    other = as_kind(kind, copy.deepcopy(base))
    with torch.no_grad():
        other.backbone.pos_embed[0, 0, 0] += 1
    before = clone(other)
    with pytest.raises(BaseMismatchError, match="1 differ: 'backbone.pos_embed'"):
        apla_mm.task(other, delta)
    with pytest.raises(BaseMismatchError, match="1 differ: 'backbone.pos_embed'"):
        apla_mm.TaskSwitch(other, {"a": delta})
    assert_same(other.state_dict(), before)
    with apla_mm.task(other, delta, check_base=False):
        assert not torch.equal(other.head.weight, before["head.weight"])
    assert_same(other.state_dict(), before)
    with pytest.raises(DeltaError, match="'backbone.blocks.0.*are not in the target"):
        apla_mm.task(nn.Linear(2, 2), delta)
    with pytest.raises(DeltaError, match="head.weight .has the shape .6, 32., not .5, 32."):
        apla_mm.task(make_net(copy.deepcopy(base.backbone), classes=6), delta)
    switch = apla_mm.TaskSwitch(base, {"a": delta})
    with pytest.raises(KeyError, match="there is no task 'b'; there are"):
        switch("b")
    with pytest.raises(DeltaError, match="nothing below prefix='encoder.': its names look like 'backbone.blocks"):
        apla_mm.TaskSwitch(base, {"a": delta}, prefix="encoder.")
    with pytest.raises(ValueError, match="prefix='backbone' must end in a dot"):
        apla_mm.TaskSwitch(base, prefix="backbone")
    with pytest.raises(ValueError, match="does not hold the switch's model as 'backbone'"):
        apla_mm.TaskSwitch(base.backbone, prefix="backbone.").add("a", delta, whole=other)
    adapted_model = as_kind("adapted", copy.deepcopy(base))
    adapted_model.backbone.blocks[0].attn.proj.trained.leads = True
    with pytest.raises(DeltaError, match="made ready for FullyShardedDataParallel"):
        apla_mm.task(adapted_model, delta)


def test_tasks_do_not_add_up(base, tasks, make_net, trained_from, clone, assert_same):
    deltas, states, _ = tasks
    before = clone(base)
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0]})
    other_switch = apla_mm.TaskSwitch(base, {"b": deltas[1]})
    with switch("a"):
        for block in (
            lambda: apla_mm.task(base, deltas[0]),
            lambda: switch("a"),
            lambda: switch(None),
            lambda: other_switch("b"),
        ):
            with pytest.raises(RuntimeError, match="in the block of task 'a' already; leave that first"), block():
                raise AssertionError
        with pytest.raises(RuntimeError, match="adding task .*in the block of task 'a' already"):
            apla_mm.task(base, deltas[1])
        with pytest.raises(RuntimeError, match="adding task 'c'.*in the block of task 'a' already"):
            switch.add("c", deltas[1])
        assert_same(base.state_dict(), states[0])
        other = copy.deepcopy(base)  # has no task on
        assert_same(other.state_dict(), states[0])
    assert_same(base.state_dict(), before)
    unrelated = make_net()
    with switch("a"), apla_mm.task(unrelated, extract_delta(trained_from(unrelated, 3))):
        assert_same(base.state_dict(), states[0])
    with switch(None), pytest.raises(RuntimeError, match="in the block of the base already"), switch("a"):
        raise AssertionError
    assert_same(base.state_dict(), before)


def test_models_that_change_between_switches(base, tasks, clone, assert_same):
    (delta, _), (state, _), _ = tasks
    switch = apla_mm.TaskSwitch(base, {"a": delta})
    apla_mm.task(base, delta)
    before = clone(base)
    for change in (lambda: apla_mm.adapt(base, r=3), lambda: apla_mm.merge(base)):  # in place
        change()
        for block in (switch("a"), apla_mm.task(base, delta)):
            with block:
                assert_same(base.state_dict(), state)
            assert_same(base.state_dict(), before)

    old, base.head = base.head, copy.deepcopy(base.head)
    with (
        pytest.raises(DeltaError, match="task 'a': 'head.bias', 'head.weight' in the model were replaced"),
        switch("a"),
    ):
        raise AssertionError
    with apla_mm.task(base, delta):  # is added again
        assert_same(base.state_dict(), state)
    switch.add("a", delta)
    with switch("a"):
        assert_same(base.state_dict(), state)
    assert_same(base.state_dict(), before)
    assert_same(old.state_dict(), base.head.state_dict())

    base.half()
    half = clone(base)
    with pytest.raises(DeltaError, match="task 'a': .*proj.weight'.* have another dtype or shape: add it again"):  # noqa: SIM117
        with switch("a"):
            raise AssertionError
    with pytest.raises(DeltaError, match="proj.weight .is torch.float16, not torch.float32"):
        apla_mm.task(base, delta)
    assert_same(base.state_dict(), half)


@torch.no_grad()
def write_to_a_channel_that_does_not_train(model):
    model.get_submodule("backbone.blocks.0.attn.proj").weight[31] += 1


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.load_state_dict({name: tensor + 1 for name, tensor in model.state_dict().items()}),
        lambda model: nn.init.zeros_(model.backbone.pos_embed),
        write_to_a_channel_that_does_not_train,
    ],
)
def test_another_base_is_refused_when_a_task_is_added_again(base, tasks, clone, assert_same, change):
    deltas, (state, _), _ = tasks
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0]})
    before = clone(base)
    change(base)
    now = clone(base)
    for add in (lambda: switch.add("a", deltas[0]), lambda: apla_mm.task(base, deltas[0])):
        with pytest.raises(BaseMismatchError, match="it was trained on another base.*of .* tensors .* differ"):
            add()
    assert_same(base.state_dict(), now)
    base.load_state_dict(before)
    with switch("a"):  # the one that was added before
        assert_same(base.state_dict(), state)
    assert_same(base.state_dict(), before)


def test_files(base, tasks, assert_same, tmp_path):
    deltas, states, _ = tasks
    file = tmp_path / "delta.safetensors"
    for delta, state in zip(deltas, states, strict=True):
        save_delta(delta, file)
        for path in (file, str(file)):
            with apla_mm.task(base, path):
                assert_same(base.state_dict(), state)
    switches = [
        apla_mm.TaskSwitch(base, {"a": file}),
        apla_mm.TaskSwitch(base.backbone, {"a": file}, prefix="backbone."),
    ]
    sizes = [switch.nbytes for switch in switches]
    assert sizes[0] == deltas[1].nbytes
    assert sizes[0] - sizes[1] == sum(t.nbytes for n, t in deltas[1].tensors.items() if "backbone" not in n)
    with pytest.raises(DeltaError, match="delta '.*none.safetensors': it cannot be opened: No such file"):
        apla_mm.task(base, tmp_path / "none.safetensors")


def test_a_file_is_read_and_checked_once(base, tasks, tmp_path, monkeypatch):
    save_delta(tasks[0][0], tmp_path / "delta.safetensors")
    apla_mm.task(base, tmp_path / "delta.safetensors")
    for name in ("load_delta", "FittedDelta"):
        monkeypatch.setattr(f"apla_mm.tasks.switch.{name}", None)
    monkeypatch.chdir(tmp_path)
    with apla_mm.task(base, "delta.safetensors"):
        pass


def test_what_is_not_finite(base, tasks, tmp_path):
    (delta, _), _, _ = tasks
    tensors = {**delta.tensors, "head.bias": torch.full_like(delta.tensors["head.bias"], torch.nan)}
    diverged = replace(delta, tensors=tensors)
    save_delta(diverged, file := tmp_path / "delta.safetensors", allow_nonfinite=True)
    switch = apla_mm.TaskSwitch(base)
    for one in (diverged, file):
        for put in (apla_mm.task, lambda base, one, **options: switch.add("a", one, **options)):
            with pytest.raises(DeltaError, match="there is NaN or infinity in 'head.bias'"):
                put(base, one)
            put(base, one, allow_nonfinite=True)
        with apla_mm.task(base, one, allow_nonfinite=True):
            assert base.head.bias.isnan().all()


def test_models_in_data_parallel(base, tasks, assert_same):
    (delta, _), (state, _), _ = tasks
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        wrapped = [nn.DataParallel(base), nn.parallel.DistributedDataParallel(base)]
        for model in (*wrapped, torch.compile(wrapped[1], backend="aot_eager")):
            for block in (apla_mm.task(model, delta), apla_mm.TaskSwitch(model, {"a": delta})("a")):
                with block:
                    assert_same(base.state_dict(), state)
    finally:
        distributed.destroy_process_group()


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_threads_take_turns(base, tasks, images, as_kind, clone, assert_same, take_turns, kind):
    deltas, _, outputs = tasks
    with torch.no_grad():
        outputs = [*outputs, base(images)]
    model = as_kind(kind, base)
    switch = apla_mm.TaskSwitch(model, {"0": deltas[0], "1": deltas[1]})
    before = clone(model)

    def serve(name, output, block):
        def one():
            with block(), torch.no_grad():
                assert torch.equal(model(images), output), name

        return one

    def anew(delta):  # which is checked again
        return Delta(delta.channels, delta.rows, delta.tensors, delta.header)

    take_turns(
        [
            serve("0", outputs[0], lambda: switch("0")),
            serve("1", outputs[1], lambda: switch("1")),
            serve("base", outputs[2], lambda: switch(None)),
            serve("task", outputs[1], lambda: apla_mm.task(model, deltas[1])),
            serve("task", outputs[0], lambda: apla_mm.task(model, anew(deltas[0]))),
        ],
        rounds=60,
    )
    assert_same(model.state_dict(), before)


def test_a_block_may_be_left_in_another_thread(base, tasks, clone, assert_same, take_turns):
    deltas, states, _ = tasks
    before = clone(base)
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0], "b": deltas[1]})
    block = switch("a")
    block.__enter__()
    assert_same(base.state_dict(), states[0])
    take_turns([lambda: block.__exit__(None, None, None)], rounds=1)
    assert_same(base.state_dict(), before)
    with switch("b"):
        assert_same(base.state_dict(), states[1])
