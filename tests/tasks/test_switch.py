"""Tasks that take turns on one base: against models of their own, to the bit."""

import contextlib
import copy
import gc
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace

import pytest
import timm
import torch
from torch import Tensor, distributed, nn

import apla_mm
from apla_mm.delta import BaseMismatchError, Delta, DeltaError, extract_delta, save_delta
from apla_mm.tasks.guards import guards_of

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
PROJ = "backbone.blocks.0.attn.proj"


class Net(nn.Module):
    def __init__(self, backbone: nn.Module | None = None, classes: int = 5) -> None:
        super().__init__()
        self.backbone = backbone or timm.create_model(
            "vit_tiny_patch16_224", img_size=32, embed_dim=32, depth=2, num_heads=2, num_classes=0
        )
        self.norm = nn.BatchNorm1d(32)
        self.head = nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.backbone(x)))


def train(model: nn.Module, steps: int = 3, seed: int = 0) -> None:
    generator = torch.Generator().manual_seed(seed)
    model.train()
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3, 32, 32, generator=generator)).square().sum().backward()
        optimizer.step()
    model.eval()


def trained_from(base: nn.Module, seed: int, **adapt: object) -> nn.Module:
    model = copy.deepcopy(base)
    apla_mm.adapt(model, **{"r": 3, "seed": seed, "trainable": ["norm.*", "head.*"], **adapt})
    train(model, seed=seed)
    return model


def clone(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        bits = (t.contiguous().reshape(-1).view(torch.uint8) for t in (a[name], b[name]))
        assert torch.equal(*bits), name


@pytest.fixture
def base() -> nn.Module:
    return Net().eval()


Tasks = tuple[list[Delta], list[dict[str, Tensor]], list[Tensor]]


@pytest.fixture
def tasks(base: nn.Module) -> Tasks:
    """Of two tasks, trained on other channels: the deltas, and states and outputs of models of their own."""
    models = [trained_from(base, seed, **more) for seed, more in ((1, {}), (2, {"r": 5}))]
    with torch.no_grad():
        outputs = [apla_mm.merge(copy.deepcopy(model))(X) for model in models]
    assert not torch.equal(*outputs)
    return [extract_delta(model) for model in models], [clone(model) for model in models], outputs


def adapted(model: nn.Module) -> nn.Module:
    apla_mm.adapt(model, r=3, seed=1, trainable=["head.*"])
    return model


def adapted_otherwise(model: nn.Module) -> nn.Module:
    apla_mm.adapt(model, r=9, seed=5, recompute="block")
    return model


KINDS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "plain": lambda model: model,
    "adapted": adapted,
    "adapted otherwise": adapted_otherwise,
    "compiled": lambda model: torch.compile(model, backend="aot_eager"),
    "adapted and compiled": lambda model: torch.compile(adapted(model), backend="aot_eager"),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad], ids=lambda m: m.__name__)
def test_inside_the_task_and_behind_what_it_was(base, tasks, kind, mode, monkeypatch):
    torch._dynamo.reset()
    monkeypatch.setattr("apla_mm.tasks.fitted.base_digests", None)  # nothing here is another base
    deltas, states, outputs = tasks
    model = KINDS[kind](copy.deepcopy(base))
    inner = getattr(model, "_orig_mod", model)
    before = clone(base)
    # compiled code rounds otherwise
    check = torch.equal if inner is model else torch.allclose
    with mode():
        plain = base(X)
        assert check(model(X), plain)
        first = [model(X)]
        for i in range(2):
            for j, (delta, state, output) in enumerate(zip(deltas, states, outputs, strict=True)):
                with apla_mm.task(model, delta):
                    assert_same(inner.state_dict(), state)
                    y = model(X)
                assert check(y, output)
                first += [] if i else [y]
                assert torch.equal(y, first[j + 1])
                assert_same(inner.state_dict(), before)
                assert torch.equal(model(X), first[0])


@pytest.mark.parametrize("adapt", [{"r": "full"}, {"trainable": ["*norm*", "backbone.pos_embed", "head.*"]}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_whole_tensors(base, adapt, dtype):
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


def test_there_and_back_a_thousand_times(base, tasks):
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


def test_a_switch_writes_to_what_the_delta_has_alone(base, tasks):
    (delta, _), _, _ = tasks
    apla_mm.task(base, delta)
    versions = {name: tensor._version for name, tensor in base.state_dict(keep_vars=True).items()}
    with apla_mm.task(base, delta):
        pass
    written = {name for name, tensor in base.state_dict(keep_vars=True).items() if tensor._version != versions[name]}
    assert written == {*delta.rows, *delta.tensors}


@pytest.mark.parametrize("kind", ["plain", "adapted"])
@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad], ids=lambda m: m.__name__)
def test_all_tasks_in_one_autocast(base, tasks, kind, mode):
    """Which keeps cast copies of weights that require a gradient."""
    deltas, states, _ = tasks
    model = KINDS[kind](copy.deepcopy(base))
    own = [copy.deepcopy(base) for _ in states]
    for one, state in zip(own, states, strict=True):
        one.load_state_dict(state)
    heads = copy.deepcopy(own[0])
    heads.backbone = copy.deepcopy(base.backbone)
    outputs = []
    for one in (*own, base, heads):
        with torch.autocast("cpu", torch.bfloat16), mode():
            outputs.append(one(X))
    switch = apla_mm.TaskSwitch(model.backbone, prefix="backbone.")
    with torch.autocast("cpu", torch.bfloat16), mode():
        for _ in range(2):
            assert torch.equal(model(X), outputs[2])
            for delta, output in zip(deltas, outputs, strict=False):
                with apla_mm.task(model, delta):
                    assert torch.equal(model(X), output)
        assert torch.equal(model(X), outputs[2])
        switch.add("a", deltas[0], whole=model)  # its heads stay
        assert torch.equal(model(X), outputs[3])
        with switch("a"):
            assert torch.equal(model(X), outputs[0])


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_inside(base, tasks, error):
    (delta, _), _, (output, _) = tasks
    before = clone(base)
    with pytest.raises(error), apla_mm.task(base, delta):
        raise error
    assert_same(base.state_dict(), before)
    with apla_mm.task(base, delta), torch.no_grad():
        assert torch.equal(base(X), output)


@pytest.mark.parametrize("after", [0, 4, 8, 9, 13, 20])
def test_ctrl_c_while_switching(base, tasks, monkeypatch, after):
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


def replace_module(model: nn.Module) -> nn.Module:
    old, model.backbone.patch_embed = model.backbone.patch_embed, copy.deepcopy(model.backbone.patch_embed)
    model.backbone.patch_embed.proj.weight.data += 1
    return old


def replace_data(model: nn.Module) -> None:
    model.backbone.norm.bias.data = model.backbone.norm.bias.data + 1


@torch.no_grad()
def write_to_a_task_s_tensor(model: nn.Module) -> None:
    model.get_submodule(PROJ).weight[31] += 1  # a channel that does not train in the task


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.load_state_dict(clone(Net())),
        lambda model: model.load_state_dict(clone(Net()), assign=True),
        lambda model: nn.init.zeros_(model.backbone.pos_embed),
        replace_module,
        replace_data,
        write_to_a_task_s_tensor,
    ],
)
@pytest.mark.parametrize("inside", [False, True])
def test_another_base_is_refused_later_too(base, tasks, monkeypatch, change, inside):
    deltas, (state, _), _ = tasks
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0], "b": deltas[1]})
    before = clone(base)
    blocks = {"switch": lambda: switch("a"), "task": lambda: apla_mm.task(base, deltas[0])}
    for block in blocks.values():
        with block():
            pass
    if inside:
        with contextlib.suppress(RuntimeError), switch("b"):
            kept = change(base)
    else:
        kept = change(base)
    now = clone(base)
    for block in blocks.values():
        with pytest.raises(BaseMismatchError, match="it was trained on another base.*of .* tensors .* differ"), block():
            raise AssertionError
    assert_same(base.state_dict(), now)
    with apla_mm.task(base, deltas[0], check_base=False):
        assert torch.equal(base.head.weight, state["head.weight"])
    del kept
    base.load_state_dict(before)
    for _ in range(2):
        for block in blocks.values():
            with block():
                assert_same(base.state_dict(), state)
        monkeypatch.setattr("apla_mm.tasks.fitted.base_digests", None)  # it was compared


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_what_does_not_fit_is_refused_before_it_is_on(base, tasks, kind):
    (delta, _), _, _ = tasks
    other = KINDS[kind](copy.deepcopy(base))
    with torch.no_grad():
        other.backbone.pos_embed[0, 0, 0] += 1
    before = clone(other)
    with pytest.raises(BaseMismatchError, match="1 differ: 'backbone.pos_embed'"):
        apla_mm.task(other, delta)
    assert_same(other.state_dict(), before)
    with apla_mm.task(other, delta, check_base=False):
        assert not torch.equal(other.head.weight, before["head.weight"])
    assert_same(other.state_dict(), before)
    with pytest.raises(DeltaError, match="'backbone.blocks.0.*are not in the target"):
        apla_mm.task(nn.Linear(2, 2), delta)
    with pytest.raises(DeltaError, match="head.weight .has the shape .6, 32., not .5, 32."):
        apla_mm.task(Net(copy.deepcopy(base.backbone), classes=6), delta)
    switch = apla_mm.TaskSwitch(base, {"a": delta})
    with pytest.raises(KeyError, match="there is no task 'b'; there are"):
        switch("b")
    with pytest.raises(DeltaError, match="nothing below prefix='encoder.': its names look like 'backbone.blocks"):
        apla_mm.TaskSwitch(base, {"a": delta}, prefix="encoder.")
    with pytest.raises(ValueError, match="prefix='backbone' must end in a dot"):
        apla_mm.TaskSwitch(base, prefix="backbone")
    with pytest.raises(ValueError, match="does not hold the switch's model as 'backbone'"):
        apla_mm.TaskSwitch(base.backbone, prefix="backbone.").add("a", delta, whole=other)
    adapted_model = adapted(copy.deepcopy(base))
    adapted_model.backbone.blocks[0].attn.proj.trained.leads = True
    with pytest.raises(DeltaError, match="made ready for FullyShardedDataParallel"):
        apla_mm.task(adapted_model, delta)


def test_tasks_do_not_add_up(base, tasks):
    deltas, states, _ = tasks
    before = clone(base)
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0]})
    part = apla_mm.TaskSwitch(base.backbone, prefix="backbone.")
    part.add("b", deltas[1])
    with switch("a"):
        for block in (
            lambda: apla_mm.task(base, deltas[0]),
            lambda: switch("a"),
            lambda: part("b"),
            lambda: part(None),
        ):
            with pytest.raises(RuntimeError, match="in the block of task 'a' already; leave that first"), block():
                raise AssertionError
        with pytest.raises(RuntimeError, match="adding task .*in the block of task 'a' already"):
            apla_mm.task(base, deltas[1])
        assert_same(base.state_dict(), states[0])
        other = copy.deepcopy(base)  # has no task on
        assert_same(other.state_dict(), states[0])
    assert_same(base.state_dict(), before)
    unrelated = Net()
    with switch("a"), apla_mm.task(unrelated, extract_delta(trained_from(unrelated, 3))):
        assert_same(base.state_dict(), states[0])


def test_adding_leaves_no_trace(base, tasks):
    """In the rows that train, before any forward brings them up to date."""
    deltas, _, _ = tasks
    model = adapted(base)
    train(model)
    before = copy.deepcopy(model)
    apla_mm.TaskSwitch(model, {"a": deltas[0]})
    trained = {name: rows for name, rows in before.named_parameters() if ".trained." in name}
    assert len(trained) == 4
    for name, rows in trained.items():
        assert torch.equal(model.get_parameter(name), rows), name
    assert_same(model.state_dict(), before.state_dict())


def test_steps_that_no_forward_has_seen_yet_survive(base, tasks):
    (delta, _), (state, _), _ = tasks
    for model in (models := [adapted(copy.deepcopy(base)) for _ in range(2)]):
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
def test_backward_across_an_edge_is_refused(base, tasks, kind):
    (delta, _), _, _ = tasks
    model = KINDS[kind](base)
    x = X.clone().requires_grad_()
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


def optimizer_step(model: nn.Module) -> None:
    parameter = next(p for p in model.head.parameters() if p.requires_grad)
    torch.optim.SGD([parameter], lr=1.0).step(lambda: parameter.square().sum().backward() or 0.0)


@torch.no_grad()
def write_to_rows(model: nn.Module) -> None:
    model.get_submodule(PROJ).trained.weight.add_(1)


@pytest.mark.parametrize(
    "write",
    [
        optimizer_step,
        lambda model: model.train()(X),  # statistics of the norm
        lambda model: model.load_state_dict(model.state_dict()),
        lambda model: model.load_state_dict(clone(model), assign=True),
        train,
        lambda model: train(torch.compile(model, backend="aot_eager")),
        write_to_rows,
    ],
)
def test_what_is_written_inside_is_lost_and_said(base, tasks, write):
    (delta, _), _, _ = tasks
    apla_mm.adapt(base, r=3, seed=4, trainable=["head.*"])  # other channels than the delta's
    before = clone(base)
    torch._dynamo.reset()
    with (
        pytest.raises(RuntimeError, match="weights of task 'a' were written to or replaced inside its block"),
        apla_mm.TaskSwitch(base, {"a": delta})("a"),
    ):
        write(base)
    assert_same(base.state_dict(), before)


def test_modules_that_are_replaced_inside_stay_and_it_is_said(base, tasks):
    (delta, _), _, _ = tasks
    before = clone(base)
    old = base.head
    for head in (nn.Linear(32, 5), nn.Linear(32, 7)):
        base.head = old
        new = clone(head)
        with (
            pytest.raises(RuntimeError, match="weights of task 'a' were written to or replaced inside"),
            apla_mm.TaskSwitch(base, {"a": delta})("a"),
        ):
            base.head = head
        assert_same(clone(head), new)
        assert_same(clone(old), {name: before[f"head.{name}"] for name in new})
        base.head = old
        assert_same(base.state_dict(), before)
    with pytest.raises(RuntimeError, match="written to or replaced inside"), apla_mm.task(base, delta):
        base.norm.weight = nn.Parameter(torch.zeros(7))
    assert_same(base.state_dict(), {**before, "norm.weight": torch.zeros(7)})


def test_models_that_change_between_switches(base, tasks):
    (delta, _), (state, _), _ = tasks
    switch = apla_mm.TaskSwitch(base, {"a": delta})
    apla_mm.task(base, delta)
    base.load_state_dict(clone(base), assign=True)
    for parameter in base.parameters():
        parameter.data = parameter.data.clone()
    before = clone(base)
    for block in (switch("a"), apla_mm.task(base, delta)):
        with block:
            assert_same(base.state_dict(), state)
        assert_same(base.state_dict(), before)

    for change in (lambda: apla_mm.adapt(base, r=3), lambda: apla_mm.merge(base)):
        change()
        with (
            pytest.raises(DeltaError, match="task 'a': .*proj.weight' in the model were replaced .* add it again"),
            switch("a"),
        ):
            raise AssertionError
        with apla_mm.task(base, delta):
            assert_same(base.state_dict(), state)
        switch.add("a", delta)
        with switch("a"):
            assert_same(base.state_dict(), state)
        assert_same(base.state_dict(), before)

    with pytest.raises(RuntimeError, match="written to or replaced inside"), switch("a"):
        base.half()
    assert_same(base.state_dict(), {n: t.half() if t.is_floating_point() else t for n, t in before.items()})
    with pytest.raises(DeltaError, match="task 'a': .*proj.weight'.* have another dtype: add it again"):  # noqa: SIM117
        with switch("a"):
            raise AssertionError
    with pytest.raises(DeltaError, match="proj.weight .is torch.float16, not torch.float32"):
        apla_mm.task(base, delta)


def test_one_tensor_in_two_places(base):
    base.copy = nn.Linear(32, 5)
    base.copy.weight = base.head.weight
    base.backbone.blocks[1].attn.proj.weight = base.backbone.blocks[0].attn.proj.weight
    trained = copy.deepcopy(base)
    apla_mm.adapt(trained, channels={f"backbone.blocks.{i}.attn.proj": [1, 4] for i in range(2)}, trainable=["head.*"])
    with torch.no_grad():
        trained.head.weight.add_(1)
    delta, before = extract_delta(trained), clone(base)
    for model in (base, adapted(copy.deepcopy(base))):
        with apla_mm.task(model, delta):
            assert_same(model.state_dict(), trained.state_dict())
        assert_same(model.state_dict(), before)


def test_files(base, tasks, tmp_path):
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
    for name in ("switch.load_delta", "switch.fit"):
        monkeypatch.setattr(f"apla_mm.tasks.{name}", None)
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


def test_models_in_data_parallel(base, tasks):
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


def test_models_are_not_kept_alive(base, tasks):
    (delta, _), _, _ = tasks
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


def hammer(work: list[Callable[[], None]], rounds: int) -> None:
    errors: list[BaseException] = []
    start = threading.Barrier(len(work))

    def run(one: Callable[[], None]) -> None:
        try:
            start.wait(30)
            for _ in range(rounds):
                one()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(one,)) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not any(thread.is_alive() for thread in threads)
    if errors:
        raise errors[0]


@pytest.mark.parametrize("kind", ["plain", "adapted"])
def test_threads_take_turns(base, tasks, kind):
    deltas, _, outputs = tasks
    with torch.no_grad():
        outputs = [*outputs, base(X)]
    model = KINDS[kind](base)
    switch = apla_mm.TaskSwitch(model, {"0": deltas[0], "1": deltas[1]})
    before = clone(model)

    def serve(name: str | None, output: Tensor, block: Callable[[], object]) -> Callable[[], None]:
        def one() -> None:
            with block(), torch.no_grad():
                assert torch.equal(model(X), output), name

        return one

    hammer(
        [
            serve("0", outputs[0], lambda: switch("0")),
            serve("1", outputs[1], lambda: switch("1")),
            serve("base", outputs[2], lambda: switch(None)),
            serve("task", outputs[1], lambda: apla_mm.task(model, deltas[1])),
            serve("task", outputs[0], lambda: apla_mm.task(model, extract_or(deltas[0]))),
        ],
        rounds=60,
    )
    assert_same(model.state_dict(), before)


def test_a_block_may_be_left_in_another_thread(base, tasks):
    """As by a server that hands a request's context from worker to worker."""
    deltas, states, _ = tasks
    before = clone(base)
    switch = apla_mm.TaskSwitch(base, {"a": deltas[0], "b": deltas[1]})

    def there_and_back() -> None:
        with switch("b"):
            assert_same(base.state_dict(), states[1])

    block = switch("a")
    block.__enter__()
    waiting = threading.Thread(target=there_and_back, daemon=True)
    waiting.start()
    waiting.join(0.05)
    assert waiting.is_alive()
    assert_same(base.state_dict(), states[0])
    hammer([lambda: block.__exit__(None, None, None)], rounds=1)
    waiting.join(10)
    assert not waiting.is_alive()
    assert_same(base.state_dict(), before)
    there_and_back()


def test_guards_are_taken_in_one_order():
    """Or threads that come from other sides would wait for each other."""
    models = [nn.Linear(1, 1) for _ in range(8)]
    for model in models:
        guards_of(model)
    one, other = nn.Sequential(*models), nn.Sequential(*reversed(models))
    numbers = [guard.number for guard in guards_of(one)]
    assert len(numbers) == 8 and numbers == sorted(numbers)
    assert guards_of(other) == guards_of(one)

    def enter(model: nn.Module) -> None:
        with apla_mm.TaskSwitch(model)(None):
            pass

    hammer([lambda: enter(one), lambda: enter(other)], rounds=200)


def extract_or(delta: Delta) -> Delta:
    """The delta as a new one, which is checked anew."""
    return Delta(delta.channels, delta.rows, delta.tensors, delta.header)


@pytest.fixture
def two_models(base: nn.Module) -> tuple[list[nn.Module], list[Delta], list[nn.Module]]:
    """Two models that share a backbone, with heads of 5 and 7 classes, deltas for them, and models of their own."""
    own = [Net(copy.deepcopy(base.backbone), classes).eval() for classes in (5, 7)]
    own = [trained_from(model, seed) for seed, model in enumerate(own)]
    return [Net(base.backbone, classes).eval() for classes in (5, 7)], [extract_delta(model) for model in own], own


@pytest.mark.parametrize("how", ["switch", "task"])
def test_two_models_on_one_backbone(base, two_models, tmp_path, how):
    models, deltas, own = two_models
    before = clone(base.backbone)
    with torch.no_grad():
        outputs = [model(X) for model in own]
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

    def serve(i: int) -> Callable[[], None]:
        def one() -> None:
            block = switch(str(i)) if how == "switch" else apla_mm.task(models[i], deltas[i])
            with block, torch.no_grad():
                assert torch.equal(models[i](X), outputs[i]), i

        return one

    for i in range(2):
        serve(i)()
    hammer([serve(0), serve(1), serve(0)], rounds=60)
    assert_same(base.backbone.state_dict(), before)


def test_one_model_takes_one_task_s_heads(base, tasks):
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
    other = Net(base.backbone).eval()
    switch.add("b", deltas[1], whole=other)
    for name, model, output in (("a", base, outputs[0]), ("b", other, outputs[1])):
        with switch(name), torch.no_grad():
            assert torch.equal(model(X), output)
    switch.add("a", deltas[1], whole=base)  # another of that name
    with switch("a"), torch.no_grad():
        assert torch.equal(base(X), outputs[1])


def test_heads_are_not_put_in_where_the_base_is_another(base, two_models):
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


def test_models_that_come_to_share_modules_later(base, two_models):
    """Each had a lock of its own."""
    models, deltas, own = two_models
    models[1].backbone = copy.deepcopy(base.backbone)
    for model, delta in zip(models, deltas, strict=True):
        apla_mm.task(model, delta)
    models[1].backbone = models[0].backbone
    with torch.no_grad():
        outputs = [model(X) for model in own]

    def serve(i: int) -> Callable[[], None]:
        def one() -> None:
            with apla_mm.task(models[i], deltas[i]), torch.no_grad():
                assert torch.equal(models[i](X), outputs[i]), i

        return one

    hammer([serve(0), serve(1)], rounds=40)
