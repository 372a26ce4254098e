import copy
import itertools

import pytest
import torch
from helpers.nets import Attending
from helpers.optional import needs
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from apla_mm.measure import SavedTensors
from apla_mm.method import PartialLinear, adapt, merge
from apla_mm.method.attention.multihead import ProjectedMultiheadAttention

L, S, B, E, HEADS = 5, 7, 2, 8, 2


def make_plain(**kwargs):
    return Attending(nn.MultiheadAttention(E, HEADS, **kwargs))


def make_pair(r=3, **kwargs):
    torch.manual_seed(0)
    plain = make_plain(**kwargs).double()
    for p in plain.parameters():
        nn.init.normal_(p, std=0.3)
    adapted = copy.deepcopy(plain)
    report = adapt(adapted, r=r)
    return plain, adapted, list(report.projections[0].channels)


def inputs(batch_first, self_attention, batched=True, kdim=E, vdim=E):
    def tokens(n, dim):
        return torch.randn(*((B, n) if batch_first else (n, B)) if batched else (n,), dim, dtype=torch.double)

    if self_attention:
        return (tokens(L, E),) * 3
    return tokens(L, E), tokens(S, kdim), tokens(S, vdim)


def assert_alike(plain, adapted, channels, args, kwargs):
    # one tensor given three times stays one
    args1, args2 = ({id(a): a.clone().requires_grad_() for a in args} for _ in range(2))
    (y1, w1), (y2, w2) = (m(*(a[id(x)] for x in args), **kwargs) for m, a in ((plain, args1), (adapted, args2)))
    torch.testing.assert_close(y2, y1, rtol=1e-9, atol=1e-10)
    assert (w1 is None) == (w2 is None)
    if w1 is not None:
        torch.testing.assert_close(w2, w1, rtol=1e-9, atol=1e-10)
    grad = torch.randn_like(y1)
    y1.backward(grad)
    y2.backward(grad)
    for a1, a2 in zip(args1.values(), args2.values(), strict=True):
        torch.testing.assert_close(a2.grad, a1.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(adapted.attn.out_proj.trained.weight.grad, plain.attn.out_proj.weight.grad[channels])


@pytest.mark.parametrize(
    ("batch_first", "self_attention", "need_weights"), list(itertools.product([False, True], repeat=3))
)
@pytest.mark.parametrize("mask", [None, "bool", "float", "per head", "padding", "both"])
def test_outputs_and_gradients_are_the_plain_modules(batch_first, self_attention, need_weights, mask):
    plain, adapted, channels = make_pair(batch_first=batch_first)
    keys = L if self_attention else S
    kwargs = dict(need_weights=need_weights)
    if mask in ("bool", "both"):
        kwargs["attn_mask"] = torch.rand(L, keys) < 0.3
        kwargs["attn_mask"][:, 0] = False
    if mask == "float":
        kwargs["attn_mask"] = torch.randn(L, keys, dtype=torch.double)
    if mask == "per head":
        kwargs["attn_mask"] = torch.randn(B * HEADS, L, keys, dtype=torch.double)
    if mask in ("padding", "both"):
        kwargs["key_padding_mask"] = torch.zeros(B, keys, dtype=torch.bool)
        kwargs["key_padding_mask"][1, -2:] = True
    assert_alike(plain, adapted, channels, inputs(batch_first, self_attention), kwargs)


@pytest.mark.parametrize("kwargs", [dict(bias=False), dict(kdim=6, vdim=4), dict(kdim=6, vdim=4, bias=False)])
def test_without_bias_and_with_other_key_and_value_sizes(kwargs):
    plain, adapted, channels = make_pair(**kwargs)
    sizes = {key: value for key, value in kwargs.items() if key.endswith("dim")}
    assert_alike(plain, adapted, channels, inputs(False, False, **sizes), {})


def test_unbatched_and_weights_of_each_head():
    plain, adapted, channels = make_pair()
    assert_alike(plain, adapted, channels, inputs(False, False, batched=False), {})
    assert_alike(plain, adapted, channels, inputs(False, False, batched=False), dict(average_attn_weights=False))


def test_state_dict_and_merge():
    plain, adapted, _ = make_pair()
    assert isinstance(adapted.attn, ProjectedMultiheadAttention)
    assert list(adapted.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        adapted.attn.out_proj.trained.weight.add_(1)
    x = inputs(False, True)
    want = adapted(*x)
    merge(adapted)
    assert [type(m) for m in adapted.modules()] == [type(m) for m in plain.modules()]
    assert vars(adapted.attn).keys() == vars(plain.attn).keys()
    for got, expected in zip(adapted(*x), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_adapting_twice_leaves_it_alone():
    _, adapted, _ = make_pair()
    module = adapted.attn
    adapt(adapted, r=3)
    assert adapted.attn is module


def test_dropout_runs_in_training_alone():
    _, adapted, _ = make_pair(dropout=0.5)
    x = inputs(False, True)
    assert not torch.equal(adapted(*x)[0], adapted(*x)[0])
    adapted.eval()
    assert torch.equal(adapted(*x)[0], adapted(*x)[0])


def test_under_mmcvs_wrapper_no_attention_matrix_is_kept():
    transformer = needs("mmcv.cnn.bricks.transformer")
    torch.manual_seed(0)
    n = 256
    plain = nn.Sequential(nn.Linear(16, 16), transformer.MultiheadAttention(16, 4, batch_first=True))
    adapted = copy.deepcopy(plain)
    adapt(adapted, r=3)
    x = torch.randn(1, n, 16)
    with SavedTensors(ignore=adapted.parameters()) as saved:
        y = adapted(x.requires_grad_())
    torch.testing.assert_close(y, plain(x), rtol=1e-5, atol=1e-5)
    assert saved.bytes < 4 * n * n


@pytest.mark.parametrize("kwargs", [dict(add_bias_kv=True), dict(add_zero_attn=True)])
def test_keys_and_values_of_its_own_are_refused(kwargs):
    with pytest.raises(ValueError, match="add_bias_kv or add_zero_attn"):
        adapt(make_plain(**kwargs), r=3)


def test_bare_module_is_adapted_and_merged_where_it_is():
    attention = nn.MultiheadAttention(E, HEADS, batch_first=True)
    x = torch.randn(2, 5, E)
    expected = attention(x, x, x)[0]
    adapt(attention, r=3)
    assert isinstance(attention.out_proj, PartialLinear)
    torch.testing.assert_close(attention(x, x, x)[0], expected)
    merge(attention)
    assert type(attention) is nn.MultiheadAttention and type(attention.out_proj) is NonDynamicallyQuantizableLinear
    torch.testing.assert_close(attention(x, x, x)[0], expected)


def test_two_attentions_with_one_projection():
    """The second one would hand the weight to a function, past what trains of it."""
    plain = nn.ModuleList(make_plain(batch_first=True) for _ in range(2))
    plain[1].attn.out_proj = plain[0].attn.out_proj
    adapted = copy.deepcopy(plain)
    (projection,) = adapt(adapted, r=3, recompute="block").projections
    for model in (plain, adapted):
        torch.manual_seed(0)
        x = torch.randn(2, 5, E)
        for attention in model:
            x = attention(x, x, x)[0]
        x.square().sum().backward()
    gradient = plain[0].attn.out_proj.weight.grad[list(projection.channels)]
    torch.testing.assert_close(adapted[1].attn.out_proj.trained.weight.grad, gradient)
    merge(adapted)
    assert [type(m) for m in adapted.modules()] == [type(m) for m in plain.modules()]
