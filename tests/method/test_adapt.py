import copy
import json
from functools import partial

import pytest
import torch
from helpers.comparisons import assert_same, changed_rows
from helpers.nets import tiny_vit
from mmengine.model import ExponentialMovingAverage
from torch import nn
from torch.nn.utils import parametrizations, prune

from apla_mm.method import PartialLinear, adapt, count_parameters, merge

make_vit = partial(tiny_vit, depth=3)
X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def train(model, steps=3, **adamw):
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, **{"lr": 1e-2, "weight_decay": 0.1, **adamw})
    for _ in range(steps):
        optimizer.zero_grad()
        (model(X) - 1).square().mean().backward()
        optimizer.step()
    return optimizer


def layout(state):
    return [(key, tensor.shape, tensor.dtype) for key, tensor in state.items()]


# 1. plain state dicts


@pytest.mark.parametrize("r", [3, "full"])
def test_state_dict_is_the_plain_models(r):
    plain = make_vit()
    adapted = copy.deepcopy(plain)
    adapt(adapted, r=r)
    assert_same(adapted.state_dict(), plain.state_dict(), ordered=True)
    assert adapted.state_dict()._metadata.keys() >= plain.state_dict()._metadata.keys()


def test_adapted_and_plain_load_each_other_in_either_order():
    torch.manual_seed(1)
    other = make_vit()
    load_first, adapt_first = make_vit(), make_vit()
    load_first.load_state_dict(other.state_dict())
    adapt(load_first, r=3)
    adapt(adapt_first, r=3)
    adapt_first.load_state_dict(other.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(load_first(X), other(X))
        torch.testing.assert_close(adapt_first(X), other(X))
    for model in (load_first, adapt_first):
        train(model)
    assert_same(load_first.state_dict(), adapt_first.state_dict(), ordered=True)
    back = make_vit()
    back.load_state_dict(adapt_first.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(back(X), adapt_first(X))


def test_load_state_dict_by_assignment():
    other, model = make_vit(), make_vit()
    adapt(model, r=3)
    model.load_state_dict(other.state_dict(), assign=True)
    with torch.no_grad():
        torch.testing.assert_close(model(X), other(X))
    train(model)


def test_to_dtype_before_and_after():
    first, last = make_vit().double(), make_vit()
    last.load_state_dict(first.state_dict())
    first.load_state_dict(last.state_dict())
    adapt(first, r=3)
    adapt(last, r=3)
    last.double()
    assert_same(first.state_dict(), last.state_dict(), ordered=True)
    with torch.no_grad():
        assert torch.equal(first(X.double()), last(X.double()))


def test_initialisation_after_adapting():
    model, reference = make_vit(), make_vit()
    adapt(model, r=3)
    torch.manual_seed(7)
    model.init_weights()
    torch.manual_seed(7)
    reference.init_weights()
    with torch.no_grad():
        torch.testing.assert_close(model(X), reference(X))
    before = copy.deepcopy(model.state_dict())
    train(model)
    assert all(len(rows) == 3 for rows in changed_rows(before, model.state_dict()).values())


def test_deepcopy_trains_by_itself():
    model = make_vit()
    adapt(model, r=3)
    train(model)
    copied = copy.deepcopy(model)
    before = copy.deepcopy(model.state_dict())
    train(copied)
    assert_same(model.state_dict(), before, ordered=True)
    assert changed_rows(before, copied.state_dict())


@pytest.mark.parametrize("update_buffers", [False, True])
@pytest.mark.parametrize("kind", ["rows", "full"])
def test_mean_of_weights_equals_that_of_a_plain_model(update_buffers, kind):
    # the reference trains the plain model, its gradient masked to the same channels
    reference = make_vit()
    model = copy.deepcopy(reference)
    report = adapt(model, r=4 if kind == "rows" else "full")
    masks = mask_like(reference, report)
    optimizers = [torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.5) for m in (reference, model)]
    means = [
        ExponentialMovingAverage(m, momentum=0.3, update_buffers=update_buffers)
        for m in (copy.deepcopy(reference), model)
    ]
    for _ in range(5):
        for m, optimizer, mean in zip((reference, model), optimizers, means, strict=True):
            optimizer.zero_grad()
            (m(X) - 1).square().mean().backward()
            for name, p in m.named_parameters():
                if m is reference:
                    p.grad = p.grad * masks[name]
            optimizer.step()
            mean.update_parameters(m)
    expected, got = means[0].module.state_dict(), means[1].module.state_dict()
    assert layout(expected) == layout(got)
    for key in expected:
        torch.testing.assert_close(got[key], expected[key], rtol=1e-5, atol=1e-6)
    assert changed_rows(model.state_dict(), got)

    # and what mmengine's EMAHook does for validation: parameters (and buffers) swapped both ways
    def tensors(m):
        return [*m.parameters(), *(m.buffers() if update_buffers else ())]

    with torch.no_grad():
        trained, mean = model(X), means[0].module(X)
        for expectation in (mean, trained):
            for a, b in zip(tensors(model), tensors(means[1].module), strict=True):
                a.data, b.data = b.data.clone(), a.data.clone()
            torch.testing.assert_close(model(X), expectation, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(means[1].module(X), mean, rtol=1e-4, atol=1e-5)


def mask_like(plain, report):
    masks = {name: torch.zeros_like(p) for name, p in plain.named_parameters()}
    for projection in report.projections:
        for part in ("weight", "bias"):
            masks[f"{projection.name}.{part}"][list(projection.channels)] = 1
    return masks


# 2. only the chosen channels change, and 3. by the restricted gradient


@pytest.mark.parametrize("r", [1, 5, 0.5, "full"])
def test_only_the_chosen_channels_change(r):
    model = make_vit()
    before = copy.deepcopy(model.state_dict())
    report = adapt(model, r=r, trainable=["head.*"])
    train(model, steps=5)
    changed = changed_rows(before, model.state_dict())
    expected = {f"{p.name}.{part}": list(p.channels) for p in report.projections for part in ("weight", "bias")}
    expected |= {"head.weight": list(range(5)), "head.bias": list(range(5))}
    assert changed == expected


def test_training_equals_plain_training_with_a_masked_gradient():
    reference = make_vit().double()
    model = copy.deepcopy(reference)
    masks = mask_like(reference, adapt(model, r=4))
    optimizers = [torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9) for m in (reference, model)]
    for _ in range(5):
        for m, optimizer in zip((reference, model), optimizers, strict=True):
            optimizer.zero_grad()
            (m(X.double()) - 1).square().mean().backward()
            if m is reference:
                for name, p in m.named_parameters():
                    p.grad *= masks[name]
            optimizer.step()
    torch.testing.assert_close(model.state_dict(), reference.state_dict(), rtol=1e-10, atol=1e-12)


def test_gradients_and_optimizer_states_are_r_rows():
    model = make_vit()
    report = adapt(model, r=4)
    optimizer = train(model)
    states = sum(t.numel() for s in optimizer.state.values() for k, t in s.items() if k.startswith("exp_avg"))
    gradients = sum(p.grad.numel() for p in model.parameters() if p.grad is not None)
    assert gradients == report.trained == 3 * 4 * (32 + 1)
    assert states == 2 * gradients


def test_nothing_is_kept_below_the_first_projection():
    model = make_vit()
    adapt(model, r=4)
    outputs = {}
    model.blocks[0].norm1.register_forward_hook(lambda m, i, o: outputs.update(norm1=o))
    model.blocks[0].attn.register_forward_hook(lambda m, i, o: outputs.update(attn=o))
    model(X)
    assert not outputs["norm1"].requires_grad
    assert outputs["attn"].requires_grad


# 4. merge


@pytest.mark.parametrize("r", [3, "full"])
def test_merged_model_is_the_plain_architecture_with_equal_outputs(r):
    plain = make_vit()
    model = copy.deepcopy(plain)
    adapt(model, r=r)
    train(model)
    with torch.no_grad():
        before = model(X)
        assert merge(model) is model
        assert torch.equal(model(X), before)
    assert [(n, type(m)) for n, m in model.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
    assert layout(model.state_dict()) == layout(plain.state_dict())
    assert [n for n, _ in model.named_parameters()] == [n for n, _ in plain.named_parameters()]
    assert [n for n, _ in model.named_buffers()] == [n for n, _ in plain.named_buffers()]
    merge(model)  # harmless


def test_merge_then_adapt_again_goes_on():
    model = make_vit()
    adapt(model, r=3)
    train(model)
    state = copy.deepcopy(model.state_dict())
    adapt(merge(model), r=5, seed=1)
    assert_same(model.state_dict(), state, ordered=True)
    train(model)


# 5. which channels


def test_channels_depend_on_seed_and_name_alone():
    channels = {}
    for seed in (0, 1):
        for noise in (0, 123):
            torch.manual_seed(noise)
            report = adapt(make_vit(depth=2 + noise % 2), r=3, seed=seed)
            for p in report.projections:
                assert channels.setdefault((seed, p.name), p.channels) == p.channels
    assert len(set(channels.values())) == len(channels)


def test_listed_channels(tmp_path):
    model = make_vit(depth=2)
    lists = {"blocks.0.attn.proj": [5, 1], "blocks.1.attn.proj": [0, 2, 4]}
    report = adapt(copy.deepcopy(model), channels=lists)
    assert [p.channels for p in report.projections] == [(1, 5), (0, 2, 4)]
    report.save_channels(tmp_path / "channels.json")
    again = adapt(model, channels=tmp_path / "channels.json")
    assert again == report
    assert json.loads((tmp_path / "channels.json").read_text())["blocks.0.attn.proj"] == [1, 5]


# 6. nothing is silent


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(r=33), r"r=33 does not fit projection 'blocks.0.attn.proj' with 32 output channels"),
        (dict(r=0), "r=0 does not fit"),
        (dict(r="half"), "r='half' does not fit"),
        (dict(r=3, channels={}), "leave r out"),
        (dict(channels={"blocks.7.attn.proj": [1]}), r"channels are listed for \['blocks.7.attn.proj'\]"),
        (dict(channels={"blocks.0.attn.proj": [1]}), "no channels are listed for projection 'blocks.1.attn.proj'"),
        (dict(channels={f"blocks.{i}.attn.proj": [32] for i in range(3)}), r"\[32\].*not ints in \[0, 32\)"),
        (dict(r=3, trainable=["heads.*"]), "trainable pattern 'heads.*' matches no parameter"),
        (dict(r=3, trainable="head.*"), "must be a list"),
        (dict(r=3, blocks=4), "blocks=4 does not fit a model with 3 attentions"),
        (dict(r=3, blocks=[0, 3]), "blocks="),
        (dict(r=3, blocks=[0, 0]), "blocks="),
        (dict(r=3, blocks="some"), "blocks='some'"),
        (dict(r=3, blocks=0), "blocks=0"),
    ],
)
def test_what_does_not_fit_is_an_error_and_leaves_the_model_alone(arguments, message):
    model = make_vit()
    before = [(name, p.requires_grad) for name, p in model.named_parameters()]
    with pytest.raises(ValueError, match=message):
        adapt(model, **arguments)
    assert [(name, p.requires_grad) for name, p in model.named_parameters()] == before


def test_wrapped_models_are_refused():
    with pytest.raises(ValueError, match="wrapped in DataParallel already: adapt it first, then wrap it"):
        adapt(nn.DataParallel(make_vit()), r=1)


def test_compiled_models_are_refused():
    """Names in it are others, from which other channels would be drawn."""
    model = make_vit()
    with pytest.raises(ValueError, match="wrapped in OptimizedModule already: adapt it first, then compile it"):
        adapt(torch.compile(model), r=1)
    assert adapt(model, r=1).trained


def test_weights_that_are_shared_are_refused():
    """The gradient of the rows in one place would be that of one use, and a step of one would undo another's."""
    model = make_vit()
    model.blocks[1].attn.proj.weight = model.blocks[0].attn.proj.weight
    with pytest.raises(ValueError, match=r"'blocks\.0\.attn\.proj' shares its weight with 'blocks\.1\.attn\.proj'"):
        adapt(model, r=3)
    assert all(p.requires_grad for p in model.parameters())
    assert adapt(model, r="full").trained
    model = make_vit()
    model.idle = nn.Linear(1, 1)
    model.idle.bias = model.blocks[2].attn.proj.bias
    with pytest.raises(ValueError, match=r"'blocks\.2\.attn\.proj' shares its bias with 'idle'"):
        adapt(model, r=3)
    assert adapt(model, r=3, blocks=[0, 1]).trained


def test_a_layer_that_is_the_projection_of_several_attentions():
    model = make_vit()
    model.blocks[2].attn.proj = model.blocks[0].attn.proj
    full = copy.deepcopy(model)
    assert [p.name for p in adapt(model, r=3).projections] == ["blocks.0.attn.proj", "blocks.1.attn.proj"]
    for one in (model, full):
        one(X).square().sum().backward()
    projection = model.blocks[2].attn.proj
    gradient = full.blocks[0].attn.proj.weight.grad[list(projection.trained.chosen)]
    torch.testing.assert_close(projection.trained.weight.grad, gradient)


def test_a_projection_that_comes_first_by_another_name():
    model = make_vit()
    wrapped = nn.Module()
    wrapped.alias, wrapped.vit = model.blocks[0].attn.proj, model
    adapt(wrapped, r=3, trainable=["*"])
    assert not wrapped.alias.weight.requires_grad and wrapped.alias.trained.weight.requires_grad
    assert model.head.weight.requires_grad
    model(X).sum().backward()


def test_bare_projection_is_merged_where_it_is():
    model = make_vit()
    adapt(model, r=3)
    projection = model.blocks[0].attn.proj
    assert merge(projection) is projection is model.blocks[0].attn.proj
    assert type(projection) is nn.Linear and "trained" not in dict(projection.named_modules())


def test_adapting_twice_alike_changes_nothing_and_otherwise_is_an_error():
    model = make_vit()
    first = adapt(model, r=3, trainable=["head.*"])
    modules = dict(model.named_modules())
    assert adapt(model, r=3, trainable=["head.*"]) == first
    assert dict(model.named_modules()) == modules
    with pytest.raises(ValueError, match="adapted otherwise before"):
        adapt(model, r=4)
    with pytest.raises(ValueError, match="adapted otherwise before"):
        adapt(model, r="full")
    with pytest.raises(ValueError, match="were adapted before and are not now"):
        adapt(model, r=3, blocks=1)
    assert adapt(model, r=3, trainable=["head.*"]) == first


# the rest


@pytest.mark.parametrize(("blocks", "expected"), [("all", [0, 1, 2]), (1, [2]), (2, [1, 2]), ([0, 2], [0, 2])])
def test_blocks(blocks, expected):
    model = make_vit()
    report = adapt(model, r=3, blocks=blocks)
    assert [p.name for p in report.projections] == [f"blocks.{i}.attn.proj" for i in expected]
    assert [i for i in range(3) if isinstance(model.blocks[i].attn.proj, PartialLinear)] == expected


def test_a_projection_held_by_two_names_is_replaced_in_both():
    model = make_vit(depth=2)
    model.alias = model.blocks[0].attn.proj
    adapt(model, r=3)
    assert model.alias is model.blocks[0].attn.proj
    assert isinstance(model.alias, PartialLinear)
    merge(model)
    assert model.alias is model.blocks[0].attn.proj
    assert type(model.alias) is nn.Linear


def test_report():
    model = make_vit()
    total = sum(p.numel() for p in model.parameters())
    report = adapt(model, r=3)
    assert (report.trained, report.total) == (3 * 3 * 33, total)
    assert count_parameters(model) == total
    assert str(report) == (
        f"APLA: 3 channels train in each of 3 projections; 297 of {total:,} parameters train ({297 / total:.2%})"
    )


def test_compiled_model_trains_alike():
    model = make_vit(depth=2)
    adapt(model, r=4)
    eager = copy.deepcopy(model)
    train(eager)
    train(torch.compile(model, fullgraph=True))
    for key, tensor in eager.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], tensor, rtol=1e-4, atol=1e-4)


def test_no_blocks_leave_only_what_is_named_to_train():
    model = make_vit()
    report = adapt(model, blocks="none", trainable=["head.*"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert report.projections == () and not any(isinstance(m, PartialLinear) for m in model.modules())
    assert report.trained == sum(p.numel() for p in model.head.parameters())
    assert str(report).startswith("APLA: no channels train in any projection; ")


# 9. a refusal leaves everything as it was


class Block(nn.Module):
    def __init__(self, attention):
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), attention
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x):
        y = self.norm(x)
        x = x + self.attn(y, y, y)[0]
        return x + self.mlp(x)


def blocks_with(last):
    return nn.Sequential(Block(nn.MultiheadAttention(8, 2)), Block(last))


def lazy():
    attention = nn.MultiheadAttention(8, 2)
    attention.out_proj = nn.LazyLinear(8)
    return attention


def quantized():
    attention = nn.MultiheadAttention(8, 2)
    weight = attention.out_proj.weight.to(torch.int8)
    attention.out_proj.weight = nn.Parameter(weight, requires_grad=False)
    return attention


def computed(how):
    def make():
        attention = nn.MultiheadAttention(8, 2)
        how(attention.out_proj)
        return attention

    return make


COMPUTED = {
    "pruned": lambda linear: prune.l1_unstructured(linear, "weight", 0.5),
    "weight_norm": parametrizations.weight_norm,
    "old weight_norm": nn.utils.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
}
REFUSED = {
    **{name: (computed(how), {}, "'1.attn.out_proj' has a weight that is computed") for name, how in COMPUTED.items()},
    "meta": (lambda: nn.MultiheadAttention(8, 2, device="meta"), dict(selection="magnitude"), "on the meta device"),
    "add_bias_kv": (lambda: nn.MultiheadAttention(8, 2, add_bias_kv=True), {}, "add_bias_kv"),
    "add_zero_attn": (lambda: nn.MultiheadAttention(8, 2, add_zero_attn=True), {}, "add_zero_attn"),
    "lazy": (lazy, {}, "'1.attn.out_proj' is a lazy layer"),
    "quantized": (quantized, {}, "'1.attn.out_proj' holds torch.int8"),
    "pattern": (lambda: nn.MultiheadAttention(8, 2), dict(trainable=["head.*"]), "matches no parameter"),
    "mode": (lambda: nn.MultiheadAttention(8, 2), dict(recompute="all"), "recompute='all'"),
}


@pytest.mark.parametrize("recompute", ["mlp", "block"])
@pytest.mark.parametrize("case", REFUSED)
def test_refusal_leaves_the_model_as_it_was(case, recompute):
    last, arguments, message = REFUSED[case]
    model = blocks_with(last())
    before = [(name, module, type(module), dict(vars(module))) for name, module in model.named_modules()]
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    with pytest.raises(ValueError, match=message):
        adapt(model, **{"r": 3, "recompute": recompute, **arguments})
    after = [(name, module, type(module), dict(vars(module))) for name, module in model.named_modules()]
    assert [entry[:3] for entry in after] == [entry[:3] for entry in before]
    assert [entry[3].keys() for entry in after] == [entry[3].keys() for entry in before]
    assert all(
        p is q and p.requires_grad == trained for (p, trained), q in zip(trains, model.parameters(), strict=True)
    )


def test_report_says_which_attentions_were_replaced():
    model = blocks_with(nn.MultiheadAttention(8, 2))
    report = adapt(model, r=3)
    assert report.replaced == ("0.attn", "1.attn")
    assert str(report).endswith("; 2 attentions replaced by fused ones")
    assert adapt(model, r=3).replaced == ()  # they are already
    assert adapt(make_vit(), r=3).replaced == ()  # timm's is fused
