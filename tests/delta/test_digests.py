import copy
import io

import pytest
import torch
from helpers.comparisons import assert_same
from mmseg.models.backbones import SwinTransformer
from safetensors.torch import load, save
from torch import nn

import apla_mm
from apla_mm.delta import BaseMismatchError, apply_delta, base_digests, check_base, extract_delta, fingerprint
from apla_mm.delta.digests import tensor_digest


def of(state, channels=None, leave_out=()):
    return fingerprint(base_digests(state, channels or {}, leave_out))


def test_same_base_same_fingerprint(make_pair):
    base, trained = make_pair()
    state = base.state_dict()
    expected = of(state)
    buffer = io.BytesIO()
    torch.save(state, buffer)
    buffer.seek(0)
    same = {
        "order": dict(reversed(state.items())),
        "pickle": torch.load(buffer, weights_only=True),
        "safetensors": load(save(state)),
        "prefix": {f"backbone.{n}": t for n, t in state.items()},
        "prefixes": {f"a.b.{n}": t for n, t in state.items()},
        "memory": {n: t.mT.contiguous().mT if t.dim() > 1 else t for n, t in state.items()},
    }
    assert {kind: of(other) for kind, other in same.items()} == dict.fromkeys(same, expected)
    assert extract_delta(trained).header.fingerprint == of(
        state, extract_delta(trained).channels, extract_delta(trained).tensors
    )


def test_other_base_other_fingerprint(make_pair):
    base, _ = make_pair()
    state = base.state_dict()
    name = "backbone.pos_embed"
    flipped = state[name].clone()
    flipped.view(torch.int32)[0, 1, 2] ^= 1
    others = [
        {**state, name: flipped},
        {**state, name: state[name].half()},
        {**state, name: state[name].squeeze(0)},
        {**state, "x": torch.zeros(1)},
        {n: t for n, t in state.items() if n != name},
        {("backbone.other" if n == name else n): t for n, t in state.items()},
        {**state, "norm.weight": state["norm.bias"], "norm.bias": state["norm.weight"]},
    ]
    assert len({of(other) for other in (state, *others)}) == len(others) + 1


def test_rows_that_train_do_not_count():
    linear = {"a.weight": torch.randn(4, 3), "a.bias": torch.randn(4), "a.b.weight": torch.randn(4, 3)}
    channels = {"a": torch.tensor([1, 3])}

    def moved(name, row):
        state = {n: t.clone() for n, t in linear.items()}
        state[name][row] += 1
        return of(state, channels) != of(linear, channels)

    assert [moved("a.weight", i) for i in range(4)] == [True, False, True, False]
    assert [moved("a.bias", i) for i in range(4)] == [True, False, True, False]
    assert all(moved("a.b.weight", i) for i in range(4))
    short = {**linear, "a.bias": torch.tensor(1.0)}  # nothing of the projection
    assert base_digests(short, channels)["a.bias"] == tensor_digest(short["a.bias"])
    assert of(linear, channels, ["a.b.weight"]) != of(linear, channels) != of(linear)


def test_names_with_one_or_no_module():
    assert fingerprint({}) == fingerprint({})
    assert fingerprint({"weight": "0"}) == fingerprint({"a.weight": "0"}) != fingerprint({"a.bias": "0"})
    # a prefix is cut between modules alone
    assert fingerprint({"ab.x": "0", "ac.x": "1"}) != fingerprint({"b.x": "0", "c.x": "1"})


def test_mismatch_names_eight_and_counts_the_rest():
    expected = {f"a.{i:02}": "0" * 64 for i in range(12)}
    check_base(expected, dict(reversed(expected.items())))
    found = {**{n: "1" * 64 for n in expected}, "new": "0" * 64}
    del found["a.11"]
    with pytest.raises(BaseMismatchError) as error:
        check_base(expected, found)
    assert "11 differ: 'a.00', 'a.01', 'a.02', 'a.03', 'a.04', 'a.05', 'a.06', 'a.07' and 3 more" in str(error.value)
    assert "1 are missing: 'a.11'; 1 are not in the delta's base: 'new'" in str(error.value)


def test_of_swin():
    """Several widths, tables, and buffers of indices, which stay in the base."""
    swin = SwinTransformer(
        pretrain_img_size=32, embed_dims=16, depths=(2, 2), num_heads=(2, 4), window_size=4, strides=(4, 2),
        out_indices=(0, 1),
    )  # fmt: skip
    trained = copy.deepcopy(swin)
    report = apla_mm.adapt(trained, r=0.25, trainable=["norm*"])
    for p in trained.parameters():
        if p.requires_grad:
            nn.init.normal_(p)
    delta = extract_delta(trained)
    assert {n: c.tolist() for n, c in delta.channels.items()} == {p.name: list(p.channels) for p in report.projections}
    assert {len(c) for c in delta.channels.values()} == {4, 8}
    assert delta.tensors.keys() == {f"norm{i}.{kind}" for i in range(2) for kind in ("weight", "bias")}
    assert any(name.endswith("relative_position_index") for name in delta.header.base)
    apply_delta(swin, delta)
    assert_same(swin.state_dict(), trained.state_dict())


def test_digest_is_of_the_bytes():
    a = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert tensor_digest(a) == tensor_digest(a.clone()) == tensor_digest(a.T.contiguous().T)
    others = [a.T, a.double(), a.reshape(-1), a + 1e-7 * a, torch.tensor([[0.0, 2.0], [3.0, 4.0]]), -a]
    assert len({tensor_digest(t) for t in [a, *others]}) == len(others) + 1
    assert tensor_digest(torch.tensor(0.0)) != tensor_digest(torch.tensor(-0.0))
    assert tensor_digest(torch.tensor(float("nan"))) == tensor_digest(torch.tensor(float("nan")))
    tensor_digest(torch.ones(3, dtype=torch.bfloat16))
    tensor_digest(torch.empty(0))
