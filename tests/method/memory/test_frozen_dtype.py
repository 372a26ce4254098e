"""Frozen weights held in bfloat16: what is computed, kept, saved and loaded is what it is without."""

import copy
import io
import pickle
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers.backbones import BACKBONES, SIZE, build
from helpers.comparisons import assert_same
from helpers.nets import TinyNet, tiny_vit
from helpers.optional import needs
from helpers.processes import in_group
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import apla_mm
from apla_mm.delta import apply_delta, extract_delta
from apla_mm.measure import SavedTensors
from apla_mm.method import adapt, merge
from apla_mm.method.memory.frozen_dtype import held_names, hold_frozen, release_frozen
from apla_mm.method.memory.held_weight import HeldWeight
from apla_mm.method.memory.recompute import MODES, set_recompute
from apla_mm.method.memory.sharding import keep_whole

FAMILIES = ["timm ViT", "timm ViT, layer scale", "mmseg ViT", "mmseg Swin"]


def make(family: str = "timm ViT") -> nn.Module:
    torch.manual_seed(0)
    if family == "timm ViT":
        return tiny_vit(drop_path_rate=0.3).train()
    if family == "timm ViT, layer scale":
        options = dict(embed_dim=32, depth=2, num_heads=2, img_size=56, num_classes=5)
        return timm.create_model("vit_small_patch14_reg4_dinov2", **options).train()
    needs("mmseg")
    model = build(*BACKBONES[family][:2]).backbone
    model.train()
    return model


def adapted(dtype: str = "bfloat16", family: str = "timm ViT", **options: Any) -> nn.Module:
    model = make(family)
    adapt(model, r=4, frozen_dtype=dtype, **options)
    return model


def images(family: str = "timm ViT") -> Tensor:
    sizes = {"timm ViT": 32, "timm ViT, layer scale": 56}
    return torch.randn(2, 3, *[sizes.get(family, SIZE)] * 2, generator=torch.Generator().manual_seed(1))


def outputs(model: nn.Module, x: Tensor, autocast: bool = True) -> list[Tensor]:
    torch.manual_seed(3)  # stochastic depth
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = model(x)
    return [y] if isinstance(y, Tensor) else list(y)


def loss_of(model: nn.Module, x: Tensor, autocast: bool = True) -> Tensor:
    return sum((y.float().square().mean() for y in outputs(model, x, autocast)), torch.zeros(()))


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def gradients(model: nn.Module, x: Tensor, autocast: bool = True) -> dict[str, Tensor]:
    model.zero_grad()
    loss_of(model, x, autocast).backward()
    return {name: p.grad.clone() for name, p in trained(model).items() if p.grad is not None}


def check_both_copies(model: nn.Module) -> None:
    weights = [p for p in model.parameters() if isinstance(p, HeldWeight)]
    assert weights
    for weight in weights:
        assert torch.equal(weight.to(weight.low.dtype), weight.master.to(weight.low.dtype))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", FAMILIES)
def test_outputs_and_gradients_are_equal_to_the_bit(family: str, mode: str) -> None:
    plain, held = (adapted(dtype, family, recompute=mode) for dtype in ("float32", "bfloat16"))
    assert not held_names(plain) and len(held_names(held)) >= 7
    x = images(family)
    assert_same(outputs(held, x), outputs(plain, x))
    one, other = gradients(held, x), gradients(plain, x)
    assert any(g.abs().sum() > 0 for g in one.values())
    assert_same(one, other)


@pytest.mark.parametrize("family", FAMILIES)
def test_without_autocast_it_computes_in_float32(family: str) -> None:
    plain, held = (adapted(dtype, family) for dtype in ("float32", "bfloat16"))
    x = images(family)
    assert_same(gradients(held, x, autocast=False), gradients(plain, x, autocast=False))
    with torch.no_grad():
        assert_same(outputs(held, x, autocast=False), outputs(plain, x, autocast=False))
    with torch.inference_mode():
        assert_same(outputs(held, x), outputs(plain, x))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_autocast_to_another_dtype_is_right_too(dtype: str) -> None:
    plain, held = adapted("float32"), adapted("float16" if dtype == "bfloat16" else "bfloat16")
    with torch.no_grad(), torch.autocast("cpu", getattr(torch, dtype)):
        assert torch.equal(held.eval()(images()), plain.eval()(images()))


@pytest.mark.parametrize("family", FAMILIES)
def test_five_steps_train_the_same(family: str) -> None:
    states = []
    for dtype in ("float32", "bfloat16"):
        model = adapted(dtype, family)
        optimizer = torch.optim.AdamW(trained(model).values(), lr=1e-2, weight_decay=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            loss_of(model, images(family)).backward()
            optimizer.step()
        states.append(model.state_dict())
    assert_same(*states)


def test_only_frozen_weights_that_autocast_casts_are_held() -> None:
    model = TinyNet(tiny_vit(num_classes=0))
    model.tied = model.idle = nn.Linear(4, 4)
    report = adapt(model, r=4, trainable=["head.*", "backbone.blocks.1.mlp.fc1.*"], frozen_dtype="bfloat16")
    names = [f"blocks.{b}.{n}.weight" for b in (0, 1) for n in ("attn.qkv", "mlp.fc1", "mlp.fc2")]
    expected = ["backbone.patch_embed.proj.weight", *(f"backbone.{n}" for n in names)]
    expected.remove("backbone.blocks.1.mlp.fc1.weight")
    assert list(report.held) == held_names(model) == expected
    assert "6 frozen weights held in bfloat16" in str(report)
    assert all(p.dtype == torch.float32 for p in model.parameters())
    assert all(isinstance(p, nn.Parameter) for p in model.parameters())


def test_casts_are_not_kept_for_backward() -> None:
    kept = {}
    for dtype in ("float32", "bfloat16"):
        model = adapted(dtype)
        with torch.autocast("cpu", torch.bfloat16), SavedTensors(model.parameters()) as saved:
            y = model(images())
        assert y.requires_grad
        kept[dtype] = saved.bytes
    weights = sum(p.low.nbytes for p in model.parameters() if isinstance(p, HeldWeight))
    first = model.blocks[0]  # before the first projection nothing needs gradients
    unneeded = sum(w.low.nbytes for w in (model.patch_embed.proj.weight, first.attn.qkv.weight))
    assert kept["float32"] - kept["bfloat16"] == weights - unneeded


@pytest.mark.parametrize("family", FAMILIES)
def test_state_dict_is_the_plain_models(family: str, tmp_path: Path) -> None:
    plain, model = make(family), adapted(family=family)
    assert_same(model.state_dict(), plain.state_dict(), ordered=True)
    assert {type(tensor) for tensor in model.state_dict().values()} == {Tensor}
    torch.save(model.state_dict(), tmp_path / "weights.pth")
    assert_same(torch.load(tmp_path / "weights.pth", weights_only=True), plain.state_dict())
    plain.load_state_dict(model.state_dict())
    parameters = model.state_dict(keep_vars=True)
    assert all(parameters[name] is p for name, p in model.named_parameters() if name in parameters)


@pytest.mark.parametrize("assign", [False, True])
def test_what_is_loaded_goes_into_both_copies(assign: bool) -> None:
    model, other = adapted(), make()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(torch.randn_like(parameter))
    state = copy.deepcopy(other.state_dict())
    names = held_names(model)
    model.load_state_dict(state, assign=assign)
    assert held_names(model) == names
    check_both_copies(model)
    assert_same(model.state_dict(), state)
    adapt(other, r=4)
    assert_same(outputs(model, images()), outputs(other, images()))


def test_mmengine_loads_into_both_copies() -> None:
    from mmengine.runner.checkpoint import get_state_dict, load_state_dict

    model, other = adapted(), tiny_vit()
    load_state_dict(model, other.state_dict(), strict=True)
    check_both_copies(model)
    assert_same(get_state_dict(model), other.state_dict())
    assert {type(tensor) for tensor in get_state_dict(model).values()} == {Tensor}


def _through_data(weight: Tensor) -> None:
    weight.data.copy_(torch.randn(weight.shape))


WRITES = {
    "in place": lambda w: w.mul_(2),
    "initialised": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "through .data": _through_data,
    "rows": lambda w: w.index_fill_(0, torch.tensor([1]), 3.0),
    "an element of a view": lambda w: w[1].fill_(3.0),
    "all of a view": lambda w: nn.init.xavier_uniform_(w.view(2, -1)),
    "through its detached": lambda w: w.detach().zero_(),
    "as one of many": lambda w: torch._foreach_mul_([w, torch.ones(1)], 2.0),
    "as the output": lambda w: torch.mul(torch.ones(w.shape), 3.0, out=w),
    "through the master": lambda w: w.master.detach().fill_(2.0),
}


@pytest.mark.parametrize("how", WRITES)
def test_what_is_written_goes_into_both_copies(how: str) -> None:
    model = adapted()
    weight = model.blocks[1].mlp.fc1.weight
    before = weight.clone()
    for _ in range(2):
        with torch.no_grad():
            WRITES[how](weight)
        check_both_copies(model)
    assert not torch.equal(weight, before)
    assert_same(model.state_dict()["blocks.1.mlp.fc1.weight"], weight.clone())


def test_what_is_written_to_a_state_dict_counts_from_the_next_mode_on() -> None:
    """As mmengine's EMA with update_buffers does it, where no version counter sees it."""
    model = adapted()
    model.state_dict()["blocks.1.mlp.fc1.weight"].data.fill_(3.0)
    model.eval()
    check_both_copies(model)
    assert model.blocks[1].mlp.fc1.weight.low.unique() == 3


def test_writing_to_a_view_of_what_is_elsewhere_is_an_error() -> None:
    """Of a weight that acts on another device, a view is one of a copy."""
    weight = HeldWeight(nn.Parameter(torch.randn(3, 2)), torch.empty(3, 2, dtype=torch.bfloat16, device="meta"))
    with torch.no_grad():
        weight.t()
        weight.to(torch.bfloat16)
        weight.t().zero_()
    with pytest.raises(RuntimeError, match=r"\(3, 2\) that is held in torch.bfloat16 was written to through a view"):
        weight.to(torch.bfloat16)


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda model: pickle.loads(pickle.dumps(model)),
        lambda model: _saved_and_loaded(model),
    ],
    ids=["deepcopy", "pickle", "torch.save"],
)
@pytest.mark.parametrize("family", ["timm ViT", "mmseg ViT"])
def test_copies_are_held_and_of_their_own(family: str, copied: Any) -> None:
    model = adapted(family=family)
    twin = copied(model)
    assert held_names(twin) == held_names(model)
    assert [type(m) for m in twin.modules()] == [type(m) for m in model.modules()]
    assert_same(gradients(twin, images(family)), gradients(model, images(family)))
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert_same(model.state_dict(), before)
    check_both_copies(model)
    check_both_copies(twin)


def _saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_gives_the_plain_model(family: str) -> None:
    plain, model = make(family), make(family)
    parameters = dict(model.named_parameters())
    adapt(model, r=4, recompute="block", frozen_dtype="bfloat16")
    merge(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]
    assert all(p is parameters[name] for name, p in model.named_parameters())
    assert_same(model.state_dict(), plain.state_dict())


def test_adapting_again_takes_the_last_choice() -> None:
    model = adapted()
    names = held_names(model)
    adapt(model, r=4, frozen_dtype="bfloat16")
    assert held_names(model) == names
    adapt(model, r=4, frozen_dtype="bfloat16", trainable=["blocks.1.mlp.*"])
    assert len(names) - len(held_names(model)) == 2
    adapt(model, r=4)
    assert not held_names(model)
    assert all(type(p) is nn.Parameter for p in model.parameters())
    assert_same(model.state_dict(), make().state_dict())


def test_a_model_that_is_not_adapted_is_held_too() -> None:
    model, plain = make().requires_grad_(False), make().requires_grad_(False)
    assert len(hold_frozen(model, "bfloat16")) == 1 + 2 * 4 + 1
    assert_same(outputs(model, images()), outputs(plain, images()))
    release_frozen(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


@pytest.mark.parametrize("family", ["timm ViT", "mmseg ViT"])
def test_recompute_may_change_afterwards(family: str) -> None:
    model = adapted(family=family)
    names, expected = held_names(model), gradients(model, images(family))
    for mode in ("block", "mlp", "none"):
        set_recompute(model, mode)
        assert held_names(model) == names
        assert_same(gradients(model, images(family)), expected)


def test_unknown_dtype_changes_nothing() -> None:
    model = make()
    types = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match="frozen_dtype='half' must be one of 'float32', 'bfloat16', 'float16'"):
        adapt(model, r=4, frozen_dtype="half")
    assert [type(m) for m in model.modules()] == types
    assert all(p.requires_grad for p in model.parameters())


def test_a_weight_that_is_thawed_gets_its_gradient() -> None:
    plain, held = adapted("float32"), adapted()
    for model in (plain, held):
        model.blocks[1].mlp.fc1.weight.requires_grad_(True)
    assert "blocks.1.mlp.fc1.weight" in gradients(held, images())
    assert_same(gradients(held, images()), gradients(plain, images()))


def test_moving_and_casting() -> None:
    model, plain = adapted(), make()
    names = held_names(model)
    master = model.blocks[0].mlp.fc1.weight.master
    model.to("cpu")
    model.share_memory()
    assert held_names(model) == names and model.blocks[0].mlp.fc1.weight.master is master and master.is_shared()
    check_both_copies(model)
    assert_same(model.state_dict(), plain.state_dict())
    there = copy.deepcopy(model).to("meta")
    assert {p.device.type for p in there.parameters()} == {"meta"}
    assert held_names(there) == names
    assert_same(model.double().state_dict(), plain.double().state_dict())
    assert not held_names(model)


def test_channels_last_convolutions() -> None:
    plain, held = (adapted(dtype).to(memory_format=torch.channels_last) for dtype in ("float32", "bfloat16"))
    weight = held.patch_embed.proj.weight
    assert weight.stride() == plain.patch_embed.proj.weight.stride() == weight.low.stride()
    assert_same(outputs(held, images()), outputs(plain, images()))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_delta_of_a_held_model_is_that_of_any(dtype: str) -> None:
    held, model = adapted(), adapted(dtype)
    deltas = [extract_delta(m) for m in (held, model)]
    assert deltas[0].header.base == deltas[1].header.base
    with torch.no_grad():
        held.blocks[0].attn.proj.trained.weight.add_(1)
    apply_delta(model, extract_delta(held))
    apply_delta(make(), extract_delta(held))
    assert_same(model.state_dict(), held.state_dict())


def test_a_delta_of_whole_tensors_goes_into_both_copies() -> None:
    other = make()
    adapt(other, r="full", trainable=["blocks.*.mlp.*"])
    with torch.no_grad():
        for parameter in trained(other).values():
            parameter.add_(torch.randn_like(parameter))
    model, before = adapted(), make()
    delta = extract_delta(other)
    with apla_mm.task(model, delta, check_base=False):
        check_both_copies(model)
        assert_same(model.state_dict(), other.state_dict())
    check_both_copies(model)
    assert_same(model.state_dict(), before.state_dict())
    apply_delta(model, delta, check_base=False)
    check_both_copies(model)
    assert_same(model.state_dict(), other.state_dict())


@pytest.mark.parametrize("update_buffers", [False, True])
def test_ema(update_buffers: bool) -> None:
    from mmengine.model import ExponentialMovingAverage

    states = []
    for dtype in ("float32", "bfloat16"):
        model = adapted(dtype)
        ema = ExponentialMovingAverage(model, momentum=0.1, update_buffers=update_buffers)
        torch.manual_seed(0)
        model.load_state_dict(tiny_vit().state_dict())  # once it is there, as a checkpoint
        for _ in range(3):
            with torch.no_grad():
                for parameter in trained(model).values():
                    parameter.add_(0.1)
            ema.update_parameters(model)
        ema.eval()
        states.append((ema.module.state_dict(), outputs(ema.module, images())))
    assert_same(*states)


@pytest.mark.parametrize("mode", ["none", "block"])
def test_compiled(mode: str) -> None:
    torch._dynamo.reset()
    model = adapted(recompute=mode).eval()
    expected = gradients(model, images())
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    loss_of(compiled, images()).backward()
    for name, parameter in trained(model).items():
        torch.testing.assert_close(parameter.grad, expected[name])
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight.mul_(2)
    torch.testing.assert_close(compiled(images()), model(images()))


def test_fully_sharded_refuses() -> None:
    with pytest.raises(ValueError, match="are held in another dtype, and FullyShardedDataParallel.*frozen_dtype"):
        keep_whole(adapted())


def work(rank: int) -> list[dict[str, Tensor]]:
    """The weights after two steps, without and with what is held, where the ranks begin with other weights."""
    states = []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(rank)
        model = tiny_vit()
        adapt(model, r=4, frozen_dtype=dtype)
        wrapped = DistributedDataParallel(model)
        if held := [p for p in model.parameters() if isinstance(p, HeldWeight)]:
            assert all(torch.equal(p.low, p.master.bfloat16()) for p in held)
        optimizer = torch.optim.SGD(trained(model).values(), lr=0.1)
        for step in range(2):
            torch.manual_seed(10 * rank + step)
            optimizer.zero_grad()
            loss_of(wrapped, torch.randn(2, 3, 32, 32)).backward()
            optimizer.step()
        states.append(model.state_dict())
    return states


def test_two_processes(tmp_path: Path) -> None:
    (plain, held), (_, other) = in_group(work, tmp_path)
    assert_same(held, plain)
    assert_same(held, other)
