"""Train -> extract -> save -> load -> apply, to the bit."""

import copy

import pytest
import torch
from helpers.comparisons import assert_same, clone, differences
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import apla_mm
from apla_mm.delta import (
    BaseMismatchError,
    DeltaError,
    apply_delta,
    base_digests,
    extract_delta,
    extract_delta_from_states,
    load_delta,
    save_delta,
)
from apla_mm.methods import LoRA


@pytest.mark.parametrize(
    ("dtype", "adapt"),
    [
        (torch.float32, {}),
        (torch.bfloat16, {}),
        (torch.float16, {"r": 5}),
        (torch.float64, {"r": 0.25, "recompute": "block"}),
        (torch.float32, {"r": "full"}),
        (torch.float32, {"r": 31, "blocks": 1}),
        (torch.float32, {"blocks": "none"}),
        (torch.float32, {"trainable": ["backbone.pos_embed", "*norm*"]}),
    ],
    ids=str,
)
def test_a_fresh_base_becomes_the_trained_model(make_pair, tmp_path, dtype, adapt):
    base, trained = make_pair(dtype, **adapt)
    save_delta(extract_delta(trained, iteration=2), tmp_path / "delta.safetensors")
    delta = load_delta(tmp_path / "delta.safetensors")
    wanted = clone(trained.state_dict())
    assert delta.names == wanted.keys()
    assert not torch.equal(wanted["norm.running_mean"], base.state_dict()["norm.running_mean"])

    plain, adapted, otherwise = (copy.deepcopy(base) for _ in range(3))
    apla_mm.adapt(adapted, **{"r": 3, **adapt})
    apla_mm.adapt(otherwise, r=4, seed=1)
    state = clone(base.state_dict())
    for target in (plain, adapted, otherwise, state):
        apply_delta(target, delta)
        assert_same(target if target is state else target.state_dict(), wanted)
    x = torch.randn(2, 3, 32, 32, dtype=dtype)
    plain_trained = apla_mm.merge(copy.deepcopy(trained)).eval()
    for model in (plain, adapted, otherwise):
        assert torch.equal(model.eval()(x), plain_trained(x))


def test_inside_autocast(make_pair):
    base, trained = make_pair()
    delta = extract_delta(trained)
    x = torch.randn(2, 3, 32, 32)
    base.eval()
    with torch.autocast("cpu", torch.bfloat16):
        before = base(x)  # which keeps casts of the weights
        apply_delta(base, delta)
        after = base(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(after, base(x)) and not torch.equal(after, before)


def test_the_delta_holds_what_trained_and_no_more(make_pair):
    base, trained = make_pair()
    delta = extract_delta(trained, r=3, seed=0)
    projections = [f"backbone.blocks.{i}.attn.proj" for i in range(2)]
    assert list(delta.channels) == projections
    assert delta.rows.keys() == {f"{p}.{kind}" for p in projections for kind in ("weight", "bias")}
    norm = ["weight", "bias", "running_mean", "running_var", "num_batches_tracked"]
    assert delta.tensors.keys() == {"head.weight", "head.bias", *(f"norm.{name}" for name in norm)}
    assert delta.header.base.keys() == base.state_dict().keys() - delta.tensors.keys()
    assert delta.header.r == 3 and delta.header.versions["torch"] == torch.__version__
    assert delta.nbytes < 0.1 * sum(t.nbytes for t in base.state_dict().values())


def test_the_delta_is_a_copy(make_pair, train):
    _, trained = make_pair()
    delta = extract_delta(trained)
    before = clone({**delta.rows, **delta.tensors, **delta.channels})
    train(trained)
    assert_same({**delta.rows, **delta.tensors, **delta.channels}, before)
    target = copy.deepcopy(trained)
    apply_delta(target, delta)
    train(target)
    state = clone(trained.state_dict())
    apply_delta(state, delta)
    for tensor in state.values():
        tensor.zero_()
    assert_same({**delta.rows, **delta.tensors, **delta.channels}, before)


def test_statistics_move_in_a_norm_that_is_frozen(make_pair):
    base, trained = make_pair(trainable=["head.*"])
    delta = extract_delta(trained)
    assert delta.tensors.keys() >= {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}
    assert "norm.weight" in delta.header.base
    apply_delta(base, delta)
    assert_same(base.state_dict(), trained.state_dict())


def test_digests_of_an_earlier_delta_stand_for_the_base(make_pair, train, monkeypatch):
    base, trained = make_pair()
    digests = extract_delta(trained).header.base
    train(trained)
    monkeypatch.setattr("apla_mm.delta.make.base_digests", None)
    delta = extract_delta(trained, digests=digests)
    assert delta.header.base == digests
    apply_delta(base, delta)
    with pytest.raises(DeltaError, match=r"digests= does not fit what trains: those of 'backbone.pos_embed' are"):
        extract_delta(trained, digests={n: d for n, d in digests.items() if n != "backbone.pos_embed"})


def test_of_a_mean_of_weights(make_pair, train):
    base, trained = make_pair()
    mean = torch.optim.swa_utils.AveragedModel(trained)
    mean.requires_grad_(False)
    train(trained)
    mean.update_parameters(trained)
    delta = extract_delta(trained, state=mean.module.state_dict())
    apply_delta(base, delta)
    assert_same(base.state_dict(), mean.module.state_dict())
    assert delta.header.base == extract_delta(trained).header.base
    with pytest.raises(DeltaError, match="is not of this model: 'module.head.bias'.* are in one of them alone"):
        extract_delta(trained, state={n: t for n, t in mean.state_dict().items() if "head" in n} | trained.state_dict())


def test_training_goes_on_from_a_delta(make_pair, train):
    base, trained = make_pair()
    apla_mm.adapt(base, r=3, trainable=["norm.*", "head.*"])
    train(base)  # its rows have moved, elsewhere
    apply_delta(base, extract_delta(trained))
    for module, other in zip(base.modules(), trained.modules(), strict=True):
        if isinstance(module, apla_mm.PartialLinear):
            assert torch.equal(module.trained.weight, other.trained.weight)
            assert torch.equal(module.weight, other.weight)
    for model in (base, trained):
        torch.manual_seed(1)
        train(model)
    assert_same(base.state_dict(), trained.state_dict())


def test_rows_that_are_nan_are_replaced(make_pair):
    _, trained = make_pair()
    wanted, delta = clone(trained.state_dict()), extract_delta(trained)
    with torch.no_grad():
        trained.backbone.blocks[0].attn.proj.trained.weight.fill_(torch.nan)
    apply_delta(trained, delta)
    assert_same(trained.state_dict(), wanted)


def test_one_task_after_another_and_back(make_pair, train):
    base, first = make_pair()
    second = copy.deepcopy(base)
    apla_mm.adapt(second, r=3, trainable=["norm.*", "head.*"])
    train(second, steps=5)
    deltas = [extract_delta(first), extract_delta(second)]
    assert deltas[0].header.fingerprint == deltas[1].header.fingerprint
    states = [clone(first.state_dict()), clone(second.state_dict())]
    for _ in range(3):
        for delta, state in zip(deltas, states, strict=True):
            apply_delta(base, delta)
            assert_same(base.state_dict(), state)


def test_below_a_prefix(make_pair):
    base, trained = make_pair(trainable=["norm.*"])
    delta = extract_delta(trained.backbone)
    wanted = {f"backbone.{n}": t for n, t in trained.backbone.state_dict().items()}
    others = {"head.weight": torch.zeros(2), "backbones": torch.zeros(2)}
    model = nn.ModuleDict({"backbone": copy.deepcopy(base.backbone), "head": nn.Linear(2, 2)})
    head = clone(model["head"].state_dict())
    apply_delta(model, delta, prefix="backbone.")
    assert_same(model.state_dict(), {**wanted, **{f"head.{n}": t for n, t in head.items()}})
    state = {**{f"backbone.{n}": t.clone() for n, t in base.backbone.state_dict().items()}, **clone(others)}
    apply_delta(state, delta, prefix="backbone.")
    assert_same(state, {**wanted, **others})
    for wrong, message in (("", "see prefix="), ("head.", "names look like 'bias', 'weight'"), ("backbone", "a dot")):
        with pytest.raises(DeltaError, match=message):
            apply_delta(model, delta, prefix=wrong)


def test_a_state_dict_gains_heads_and_keeps_its_tensors(make_pair):
    base, trained = make_pair()
    delta = extract_delta(trained)
    state = {n: t for n, t in base.state_dict().items() if n not in delta.tensors}
    before = (dict(state), clone(state))
    apply_delta(state, delta)
    assert_same(state, trained.state_dict())
    assert_same(*before)


def test_one_tensor_in_two_places(make_pair):
    def tie(net):
        net.backbone.blocks[1].attn.proj = net.backbone.blocks[0].attn.proj
        net.backbone.add_module("again", nn.Linear(32, 32))
        net.backbone.again.weight = net.backbone.blocks[0].attn.proj.weight
        net.copy = nn.Linear(32, 5)
        net.copy.weight = net.head.weight
        return net

    untied, _ = make_pair()
    base = tie(copy.deepcopy(untied))
    trained = copy.deepcopy(base)
    again, projection = trained.backbone.again, trained.backbone.blocks[0].attn.proj
    again.weight = nn.Parameter(again.weight.detach().clone())  # adapt refuses it as it is
    apla_mm.adapt(trained, r=3, trainable=["head.*"])
    again.weight = projection.weight
    with torch.no_grad():
        for p in trained.parameters():
            if p.requires_grad:
                p.add_(1)
    delta = extract_delta(trained)
    wanted = clone(trained.state_dict())
    assert not torch.equal(wanted["backbone.again.weight"], base.state_dict()["backbone.again.weight"])
    fresh = copy.deepcopy(base)
    apply_delta(fresh, delta)
    assert_same(fresh.state_dict(), wanted)
    assert fresh.copy.weight is fresh.head.weight

    delta.tensors["copy.weight"] += 1
    with pytest.raises(DeltaError, match=r"'copy.weight', 'head.weight' are one tensor in the target"):
        apply_delta(base, delta)


@pytest.mark.parametrize("given", [False, True])
def test_from_two_state_dicts(make_pair, given):
    base, trained = make_pair(r=7)
    direct = extract_delta(trained)
    channels = direct.channels if given else None
    delta = extract_delta_from_states(trained.state_dict(), base.state_dict(), channels, config="x = 1")
    assert_same(delta.channels, direct.channels)
    assert_same(delta.rows, direct.rows)
    assert_same(delta.tensors, direct.tensors)
    assert delta.header.base == direct.header.base and delta.header.config == "x = 1"
    apply_delta(base, delta)
    assert_same(base.state_dict(), trained.state_dict())


def test_from_two_state_dicts_whatever_moved(make_pair):
    base, trained = make_pair(r="full")
    trained.backbone.pos_embed.data[0, 0, 0] += 1
    trained.backbone.blocks[0].mlp.fc1.bias.data[3] += 1
    trained.backbone.blocks[1].mlp.fc1.weight.data[5, 0] *= -1
    trained.backbone.blocks[1].mlp.fc1.bias.data[9] *= -1
    state, before = trained.state_dict(), base.state_dict()
    before["gone"] = torch.zeros(3)
    odd = {"odd.weight": torch.zeros(4, 3), "odd.bias": torch.zeros(4, 0), "odder.weight": torch.zeros(4, 3)}
    before.update(clone(odd))
    state.update(odd, **{"odder.bias": torch.zeros(4)})
    state["odd.weight"][1] = state["odder.weight"][1] = 1
    state["head.weight"] = torch.randn(9, 32)
    state["new"] = torch.randn(3)
    delta = extract_delta_from_states(state, before)
    assert delta.channels["backbone.blocks.1.mlp.fc1"].tolist() == [5, 9]
    assert {"backbone.pos_embed", "backbone.blocks.0.mlp.fc1.bias", "new", "head.weight"} <= delta.tensors.keys()
    assert {"odd.weight", "odder.weight", "odder.bias"} <= delta.tensors.keys()
    assert "backbone.blocks.0.attn.proj.weight" in delta.tensors
    target = {n: t for n, t in before.items() if n not in ("gone", "head.weight")}
    apply_delta(target, delta)
    assert_same(target, state)


def test_from_two_state_dicts_refused(make_pair):
    base, trained = (model.state_dict() for model in make_pair())
    channels = {"backbone.blocks.0.attn.proj": torch.tensor([0]), "backbone.blocks.1.attn.proj": torch.tensor([0])}
    with pytest.raises(DeltaError, match=r"rows \[.*\] of 'backbone.blocks.0.attn.proj.weight' differ from the base"):
        extract_delta_from_states(trained, base, channels)
    with pytest.raises(DeltaError, match=r"given for 'backbone.blocks.0.attn.proj' are not all in \[0, 32\)"):
        extract_delta_from_states(trained, base, {"backbone.blocks.0.attn.proj": torch.tensor([0, 32])})
    with pytest.raises(DeltaError, match="no 'x.weight' of one shape"):
        extract_delta_from_states(trained, base, {"x": torch.tensor([0])})
    with pytest.raises(DeltaError, match="no 'backbone.blocks.0.attn.proj.bias' of one shape"):
        without = {n: t for n, t in base.items() if n != "backbone.blocks.0.attn.proj.bias"}
        extract_delta_from_states(trained, without, extract_delta_from_states(trained, base).channels)
    with pytest.raises(DeltaError, match=r"'\\x1b\[2J' in the state dict .* is no plain tensor but int"):
        extract_delta_from_states({**trained, "\x1b[2J": 1}, base)
    with pytest.raises(DeltaError, match=r"cls_token' is torch.float16 in the trained state and torch.float32 in"):
        extract_delta_from_states({**trained, "backbone.cls_token": trained["backbone.cls_token"].half()}, base)
    with pytest.raises(DeltaError, match=r"'state_dict' in .* is no plain tensor but OrderedDict; of a"):
        extract_delta_from_states({"state_dict": trained}, base)
    with pytest.raises(DeltaError, match="it is empty: nothing was trained"):
        extract_delta_from_states(base, base)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.int64]), seed=st.integers(0, 2**16))
def test_from_any_two_state_dicts(data, dtype, seed):
    torch.manual_seed(seed)
    shapes = st.lists(st.integers(0, 4), max_size=3).map(tuple)
    names = st.sampled_from(["a.weight", "a.bias", "b.weight", "b.bias", "weight", "a.b.weight", "c"])
    base = {n: (torch.randn(shape) * 3).to(dtype) for n, shape in data.draw(st.dictionaries(names, shapes)).items()}
    trained = clone(base)
    for name, tensor in trained.items():
        if tensor.dim() and len(tensor):
            rows = data.draw(st.lists(st.integers(0, len(tensor) - 1), max_size=3), label=name)
            tensor[rows] = -tensor[rows]  # zeros of other signs, too
        elif data.draw(st.booleans()):
            trained[name] = tensor + 1
    try:
        delta = extract_delta_from_states(trained, base)
    except DeltaError as error:
        assert "empty" in str(error)
        assert not differences(trained, base)
        return
    apply_delta(base, delta)
    assert not differences(base, trained)


def edited(delta, **groups):
    """A copy of a delta with some of its tensors replaced, or removed."""
    new = {name: clone(getattr(delta, name)) for name in ("channels", "rows", "tensors")}
    for group, tensors in groups.items():
        new[group] = {n: t for n, t in {**new[group], **tensors}.items() if t is not None}
    return type(delta)(**new, header=delta.header)


PROJ = "backbone.blocks.1.attn.proj"


@pytest.mark.parametrize("kind", ["plain", "adapted", "state"])
@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (dict(channels={PROJ: torch.tensor([0, 1, 32])}), r"proj.weight \(has 32 channels, and 32 is to be written\)"),
        (dict(rows={f"{PROJ}.weight": torch.zeros(3, 31)}), r"\(has the shape \(32, 32\), and the rows \(3, 31\)\)"),
        (dict(rows={f"{PROJ}.weight": torch.zeros(3, 32).half()}), r"\(is torch.float32, not torch.float16\)"),
        (dict(tensors={"head.weight": torch.zeros(6, 32)}), r"head.weight \(has the shape \(5, 32\), not \(6, 32\)\)"),
        (dict(tensors={"norm.running_var": torch.zeros(32).double()}), r"\(is torch.float32, not torch.float64\)"),
        (dict(tensors={"norm.num_batches_tracked": torch.tensor(1.0)}), r"\(is torch.int64, not torch.float32\)"),
        (dict(channels={PROJ: torch.tensor([2, 1, 0])}), "distinct, ascending and not negative"),
        (dict(rows={f"{PROJ}.bias": None}), r"the rows 'backbone.blocks.1.attn.proj.bias' are missing"),
    ],
)
def test_what_does_not_fit_changes_nothing(make_pair, kind, groups, message):
    base, trained = make_pair()
    if kind == "adapted":
        apla_mm.adapt(base, r=3)
    target = dict(base.state_dict()) if kind == "state" else base
    before = clone(base.state_dict())
    for check_base in (True, False):
        with pytest.raises(DeltaError, match=message):
            apply_delta(target, edited(extract_delta(trained), **groups), check_base=check_base)
    assert_same(target if kind == "state" else target.state_dict(), before)


def test_a_model_needs_all_that_the_delta_has(make_pair):
    base, trained = make_pair()
    delta = extract_delta(trained)
    before = clone(base.backbone.state_dict())
    del base.head
    with pytest.raises(DeltaError, match=r"'head.bias', 'head.weight' are not in the target: its names look like"):
        apply_delta(base, delta)
    with pytest.raises(DeltaError, match=r"it has no such names"):
        apply_delta(base, delta, prefix="x.")
    assert_same(base.backbone.state_dict(), before)


@pytest.mark.parametrize("error", [RuntimeError("no room"), KeyboardInterrupt()], ids=repr)
@pytest.mark.parametrize("after", [0, 3, 9, 13])
def test_an_error_while_writing_is_undone(make_pair, monkeypatch, error, after):
    base, trained = make_pair()
    apla_mm.adapt(base, r=3)
    delta, before = extract_delta(trained), clone(base.state_dict())
    calls = 0

    def failing(original):
        def call(*args):
            nonlocal calls
            calls += 1
            if calls == after + 1:
                raise error
            return original(*args)

        return call

    for owner, name in ((torch.Tensor, "copy_"), (torch.Tensor, "index_copy_")):
        monkeypatch.setattr(owner, name, failing(getattr(owner, name)))
    with pytest.raises(DeltaError if isinstance(error, RuntimeError) else KeyboardInterrupt):
        apply_delta(base, delta, check_base=False)
    monkeypatch.undo()
    assert calls > after
    assert_same(base.state_dict(), before)
    for module in base.modules():
        if isinstance(module, apla_mm.PartialLinear):
            assert torch.equal(module.trained.weight, module.weight[module.trained.channels])


def test_targets_that_cannot_be_written_to(make_pair):
    base, trained = make_pair()
    delta = extract_delta(trained)
    with pytest.raises(DeltaError, match="'backbone.pos_embed' have no values in the target"):
        meta = copy.deepcopy(base)
        meta.backbone.pos_embed = nn.Parameter(base.backbone.pos_embed.to("meta"))
        apply_delta(meta, delta)
    base.norm.running_mean = torch.zeros(1).expand(32)
    with pytest.raises(DeltaError, match=r"'norm.running_mean \(cannot be written to"):
        apply_delta(base, delta)
    with pytest.raises(DeltaError, match=r"'meta' in the state dict are no tensors; of a checkpoint, give its"):
        apply_delta({"meta": {}}, delta)


def test_another_base(make_pair):
    base, trained = make_pair()
    delta = extract_delta(trained)
    with torch.no_grad():
        base.backbone.blocks[0].attn.proj.weight[delta.channels["backbone.blocks.0.attn.proj"]] += 1  # trained anyway
        base.head.weight += 1
    apply_delta(copy.deepcopy(base), delta)

    with torch.no_grad():
        base.backbone.pos_embed[0, 0, 0] += 1
    before = clone(base.state_dict())
    here = base_digests(before, delta.channels, delta.tensors)
    message = (
        f"fingerprint {delta.header.fingerprint[:12]}, here [0-9a-f]{{12}}; "
        f"of {len(here)} tensors 1 differ: 'backbone.pos_embed'. .* check_base=False"
    )
    for target in (base, dict(before)):
        with pytest.raises(BaseMismatchError, match=message):
            apply_delta(target, delta)
    assert_same(base.state_dict(), before)
    apply_delta(base, delta, check_base=False)
    changed = {"backbone.pos_embed": before["backbone.pos_embed"]}
    assert_same(base.state_dict(), {**trained.state_dict(), **changed})

    adapted = copy.deepcopy(trained)
    apla_mm.adapt(apla_mm.merge(adapted), r=4, seed=1)
    with torch.no_grad():
        adapted.backbone.blocks[1].attn.proj.trained.weight += 1  # of which the full weight knows nothing yet
    with pytest.raises(BaseMismatchError, match="1 differ: 'backbone.blocks.1.attn.proj.weight'"):
        apply_delta(adapted, delta)

    base.extra = nn.Linear(1, 1)
    with pytest.raises(BaseMismatchError, match=r"2 are not in the delta's base: 'extra.bias', 'extra.weight'"):
        apply_delta(base, delta)
    state = {n: t for n, t in trained.state_dict().items() if ".mlp." not in n}
    with pytest.raises(BaseMismatchError, match=r"8 are missing: 'backbone.blocks.0.mlp.fc1.bias', .*blocks.1"):
        apply_delta(state, delta)


def test_of_a_model_that_trains_by_lora_it_holds_merged_weights(make_pair, train):
    base, _ = make_pair()
    trained = copy.deepcopy(base)
    LoRA(r=2).prepare(trained.backbone)
    train(trained)
    delta = extract_delta(trained)
    weights = {f"backbone.blocks.{i}.attn.qkv.weight" for i in range(2)}
    assert weights <= delta.tensors.keys() and not weights & delta.header.base.keys()
    wanted = clone(trained.state_dict())
    with pytest.raises(DeltaError, match="trains by LoRA.*merge it first"):
        apply_delta(trained, delta)
    assert_same(trained.state_dict(), wanted)
    apply_delta(base, delta)
    assert_same(base.state_dict(), wanted)
