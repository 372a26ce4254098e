import copy
import pickle

import pytest
import torch
from helpers.comparisons import assert_same, clone
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from apla_mm.method import PartialLinear
from apla_mm.method.class_change import change_back

TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.bfloat16: 3e-2}


def make_pair(out_features=6, in_features=5, r=2, bias=True, dtype=torch.float32, seed=0):
    """The plain layer, a PartialLinear made of a copy of it, and the channels."""
    torch.manual_seed(seed)
    plain = nn.Linear(in_features, out_features, bias=bias, dtype=dtype)
    channels = sorted(torch.randperm(out_features)[:r].tolist())
    return plain, PartialLinear.of(copy.deepcopy(plain), channels), channels


def assert_restricted_gradient(plain, partial, channels, tolerance):
    pairs = [(plain.weight, partial.trained.weight), (plain.bias, partial.trained.bias)]
    for full, rows in pairs:
        if full is not None:
            assert rows.grad.dtype == rows.dtype
            torch.testing.assert_close(rows.grad, full.grad[channels], rtol=tolerance, atol=tolerance)
    assert partial.weight.grad is None
    assert partial.bias is None or partial.bias.grad is None


@st.composite
def cases(draw):
    out_features = draw(st.integers(1, 9))
    return dict(
        out_features=out_features,
        in_features=draw(st.integers(1, 8)),
        r=draw(st.integers(1, out_features)),
        bias=draw(st.booleans()),
        dtype=draw(st.sampled_from([torch.float32, torch.float64, torch.bfloat16])),
        seed=draw(st.integers(0, 2**16)),
    )


@settings(max_examples=150, deadline=None)
@given(
    case=cases(),
    batch=st.lists(st.integers(1, 4), min_size=0, max_size=3),
    layout=st.sampled_from(["contiguous", "transposed", "strided", "expanded"]),
    input_needs_grad=st.booleans(),
)
def test_gradient_is_the_full_one_restricted(case, batch, layout, input_needs_grad):
    plain, partial, channels = make_pair(**case)
    shape = (*batch, case["in_features"])
    if layout == "transposed":
        x = torch.randn(shape[::-1], dtype=case["dtype"]).permute(*reversed(range(len(shape))))
    elif layout == "strided":
        x = torch.randn((*batch, 2 * case["in_features"]), dtype=case["dtype"])[..., ::2]
    elif layout == "expanded":
        x = torch.randn(case["in_features"], dtype=case["dtype"]).expand(shape)
    else:
        x = torch.randn(shape, dtype=case["dtype"])
    x1, x2 = x.detach().requires_grad_(input_needs_grad), x.detach().requires_grad_(input_needs_grad)

    y1, y2 = plain(x1), partial(x2)
    tolerance = TOLERANCE[case["dtype"]]
    torch.testing.assert_close(y2, y1, rtol=tolerance, atol=tolerance)
    grad = torch.randn_like(y1)
    y1.backward(grad)
    y2.backward(grad)
    assert_restricted_gradient(plain, partial, channels, tolerance)
    if input_needs_grad:
        torch.testing.assert_close(x2.grad, x1.grad, rtol=tolerance, atol=tolerance)
    else:
        assert x2.grad is None


@settings(max_examples=40, deadline=None)
@given(case=cases(), uses=st.integers(1, 3), steps=st.integers(1, 3))
def test_use_several_times_in_a_graph_and_accumulated_gradients(case, uses, steps):
    case = {**case, "in_features": case["out_features"], "dtype": torch.float64}
    plain, partial, channels = make_pair(**case)
    for _ in range(steps):
        x1 = x2 = torch.randn(3, case["in_features"], dtype=torch.float64)
        for _ in range(uses):
            x1, x2 = torch.tanh(plain(x1)), torch.tanh(partial(x2))
        x1.sum().backward()
        x2.sum().backward()
    assert_restricted_gradient(plain, partial, channels, 1e-10)


@settings(max_examples=30, deadline=None)
@given(case=cases())
def test_autocast_bfloat16(case):
    plain, partial, channels = make_pair(**{**case, "dtype": torch.float32})
    x = torch.randn(2, 3, case["in_features"])
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y1, y2 = plain(x1), partial(x2)
    assert y2.dtype == y1.dtype == torch.bfloat16
    assert torch.equal(y1, y2)
    grad = torch.randn_like(y1)
    y1.backward(grad)
    y2.backward(grad)
    assert x2.grad.dtype == torch.float32
    torch.testing.assert_close(x2.grad, x1.grad, rtol=1e-2, atol=1e-2)
    assert_restricted_gradient(plain, partial, channels, 2e-2)


def test_autocast_keeps_the_half_precision_input_for_backward():
    _, partial, _ = make_pair(out_features=64, in_features=64, r=4)
    kept = []
    with (
        torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t),
        torch.autocast("cpu", dtype=torch.bfloat16),
    ):
        partial(torch.randn(10, 64))
    assert [t.dtype for t in kept if t.shape == (10, 64)] == [torch.bfloat16]


def test_compiled_without_a_graph_break():
    plain, partial, channels = make_pair(out_features=12, in_features=8, r=5)
    compiled = torch.compile(partial, fullgraph=True)
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1) for m in (plain, partial)]
    mask = torch.zeros(12, 1)
    mask[channels] = 1
    for _ in range(3):
        x = torch.randn(4, 8)
        for optimizer, layer in zip(optimizers, (plain, compiled), strict=True):
            optimizer.zero_grad()
            layer(x).square().sum().backward()
        assert_restricted_gradient(plain, partial, channels, 1e-4)
        plain.weight.grad *= mask
        plain.bias.grad *= mask[:, 0]
        for optimizer in optimizers:
            optimizer.step()
    torch.testing.assert_close(compiled(x), plain(x))


def test_backward_makes_nothing_of_the_weights_size():
    _, partial, _ = make_pair(out_features=512, in_features=512, r=4)
    x = torch.randn(2, 512)
    shapes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            # views aside: what is made anew
            if isinstance(out, torch.Tensor) and out.data_ptr() != partial.weight.data_ptr():
                shapes.append(tuple(out.shape))
            return out

    y = partial(x.requires_grad_())
    with Watch():
        y.sum().backward()
    assert (4, 512) in shapes
    assert max(torch.Size(s).numel() for s in shapes) <= 4 * 512


def test_optimizer_step_between_forward_and_backward_is_an_error_as_for_a_plain_layer():
    plain, partial, _ = make_pair()
    for layer in (plain, partial):
        y = layer(torch.randn(3, 5, requires_grad=True)).sum()
        with torch.no_grad():
            next(p for p in layer.parameters() if p.requires_grad).add_(1)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            y.backward()


def test_second_derivative_is_an_error():
    _, partial, _ = make_pair()
    x = torch.randn(3, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(partial(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("name", ["weight", "bias"])
def test_what_is_frozen_set_to_train_is_an_error(name):
    _, partial, _ = make_pair()
    partial.get_parameter(name).requires_grad_(True)
    with pytest.raises(RuntimeError, match=f"the frozen {name} .* r='full'"):
        partial(torch.randn(1, 5))


def test_hooks_mode_and_tensors_are_taken_over_and_given_back():
    class MyLinear(nn.Linear):
        pass

    linear = MyLinear(5, 6).eval()
    calls = []
    linear.register_forward_hook(lambda *_: calls.append("hook"))
    weight = linear.weight
    partial = PartialLinear.of(linear, [1, 3])
    assert partial.weight is weight
    assert not partial.training
    assert not partial.trained.training
    partial(torch.randn(1, 5))
    change_back(partial)
    back = partial
    back(torch.randn(1, 5))
    assert calls == ["hook", "hook"]
    assert type(back) is MyLinear
    assert back.weight is weight
    assert vars(back).keys() == vars(linear).keys()
    assert not list(back.children())


@pytest.mark.parametrize("change", ["data", "in place", "init", "load"])
def test_writing_the_full_weight_reaches_the_trained_rows(change):
    _, partial, channels = make_pair()
    new = torch.randn(6, 5)
    if change == "data":
        partial.weight.data.copy_(new)
    elif change == "in place":
        with torch.no_grad():
            partial.weight.copy_(new)
    elif change == "init":
        nn.init.constant_(partial.weight, 2.0)
        new = torch.full((6, 5), 2.0)
    else:
        with torch.no_grad():
            partial.trained.weight.add_(1)  # not yet seen by the full weight
        partial.load_state_dict({"weight": new, "bias": torch.zeros(6)})
    x = torch.randn(2, 5)
    torch.testing.assert_close(partial(x) - partial.bias, x @ new.T)
    assert torch.equal(partial.trained.weight, new[channels])


@pytest.mark.parametrize("through_data", [False, True])
def test_writing_the_trained_rows_reaches_the_full_weight(through_data):
    _, partial, channels = make_pair()
    rows = torch.randn(2, 5)
    with torch.no_grad():
        (partial.trained.weight.data if through_data else partial.trained.weight).copy_(rows)
    assert torch.equal(partial.state_dict()["weight"][channels], rows)
    change_back(partial)
    assert type(partial) is nn.Linear and torch.equal(partial.weight[channels], rows)


def test_if_both_were_written_the_trained_rows_count_as_a_whole():
    # as in a mean of parameters, which writes both: here exactly, there one step late
    _, partial, channels = make_pair()
    with torch.no_grad():
        partial.trained.weight[1].add_(1)
        partial.weight.add_(5)
    rows = partial.trained.weight.clone()
    assert torch.equal(partial.state_dict()["weight"][channels], rows)


def test_pickle_and_deepcopy():
    _, partial, _ = make_pair()
    with torch.no_grad():
        partial.trained.weight.add_(1)
    x = torch.randn(2, 5)
    for copied in (copy.deepcopy(partial), pickle.loads(pickle.dumps(partial))):
        assert torch.equal(copied(x), partial(x))
        with torch.no_grad():
            copied.trained.weight.add_(1)
        assert not torch.equal(copied(x), partial(x))


def test_inference_mode():
    plain, partial, _ = make_pair()
    x = torch.randn(2, 5)
    with torch.inference_mode():
        assert torch.equal(partial(x), plain(x))
    partial(x).sum().backward()
    assert partial.trained.weight.grad is not None


def gathered(partial, weight):
    """Stands for a gathering from shards: the frozen weight is another tensor, with what the shards hold."""
    partial._parameters["weight"] = weight.clone()


def test_rows_that_lead_count_in_weights_that_are_gathered_anew():
    plain, partial, channels = make_pair()
    shards = plain.weight.detach().clone()
    partial.trained.leads = True
    with torch.no_grad():
        partial.trained.weight.add_(1)
    rows = partial.trained.weight.detach().clone()
    expected = shards.index_copy(0, torch.tensor(channels), rows)
    x = torch.randn(3, 5, requires_grad=True)
    for _ in range(3):  # no step in between
        gathered(partial, shards)
        y = partial(x)
        torch.testing.assert_close(y, x @ expected.T + plain.bias)
    assert torch.equal(partial.trained.weight, rows)
    gathered(partial, shards)
    assert torch.equal(partial.state_dict()["weight"], expected)

    partial.weight.data.copy_(shards)  # y's weight is gathered again for backward
    y = partial(x)
    partial.weight.data.copy_(shards)
    (grad,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(grad, expected.sum(0).expand(3, 5))


def test_rows_that_lead_follow_what_is_loaded():
    plain, partial, channels = make_pair()
    partial.trained.leads = True
    with torch.no_grad():
        partial.trained.weight.add_(1)
        partial.trained.bias.add_(1)
    partial.load_state_dict({"bias": torch.zeros(6)}, strict=False)
    torch.testing.assert_close(partial.trained.weight, plain.weight[channels] + 1)
    assert not partial.trained.bias.any()
    partial.load_state_dict(plain.state_dict())
    assert torch.equal(partial.trained.weight, plain.weight[channels])
    x = torch.randn(2, 5)
    assert torch.equal(partial(x), plain(x))


def test_weight_that_is_given_for_a_call_counts_for_that_call():
    plain, partial, _ = make_pair()
    x, weight = torch.randn(2, 5), torch.randn(6, 5)
    y = torch.func.functional_call(partial, {"weight": weight}, x)
    torch.testing.assert_close(y, x @ weight.T + plain.bias)
    assert torch.equal(partial(x), plain(x))


@pytest.mark.parametrize("requires_grad", [False, True])
def test_weight_in_a_flat_parameter_is_an_error(requires_grad):
    _, partial, _ = make_pair()
    flat = partial.weight.detach().flatten().requires_grad_(requires_grad)
    partial._parameters["weight"] = flat.split(30)[0].view(6, 5)
    with pytest.raises(RuntimeError, match="keep_whole"):
        partial(torch.randn(2, 5))


def test_weight_that_is_a_shard_is_an_error():
    _, partial, _ = make_pair()
    partial.weight.data = partial.weight.data.flatten()[:7]
    for call in (partial.sync, partial.state_dict, lambda: change_back(partial)):
        with pytest.raises(RuntimeError, match="shard"):
            call()


def test_good_weights_can_be_loaded_over_rows_that_became_nan() -> None:
    layer = PartialLinear.of(nn.Linear(4, 6), [1, 3])
    good = clone(layer.state_dict())
    layer.trained.weight.data.fill_(torch.nan)
    layer(torch.zeros(1, 4))
    layer.load_state_dict(good)
    assert torch.equal(layer.trained.weight, good["weight"][[1, 3]])
    assert_same(layer.state_dict(), good)
