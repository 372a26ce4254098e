import copy
import gc
import pickle
import weakref

import pytest
import timm
import torch
from helpers.comparisons import assert_same
from helpers.nets import Attending, tiny_vit
from torch import nn
from torch.utils.checkpoint import CheckpointPolicy

from apla_mm.measure import SavedTensors
from apla_mm.method import adapt, merge
from apla_mm.method.memory.recompute import _keep_attention, reset_recompute, set_recompute

MODES = ["mlp", "linear", "block"]
TIMM = {
    "ViT": ("vit_tiny_patch16_224", dict(embed_dim=32, depth=3, num_heads=2)),
    "ViT with layer scale": ("vit_small_patch14_reg4_dinov2", dict(embed_dim=32, depth=3, num_heads=2)),
    "EVA": ("eva02_tiny_patch14_224", dict(embed_dim=64, depth=3, num_heads=2)),
    "DINOv3": ("vit_small_patch16_dinov3", dict(embed_dim=64, depth=3, num_heads=2)),
}


def make(name: str = "ViT", **options) -> nn.Module:
    model_name, kwargs = TIMM[name]
    model = timm.create_model(model_name, num_classes=5, img_size=56 if "14" in model_name else 64, **kwargs, **options)
    return model.train()


def gradients(model: nn.Module, x: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    torch.manual_seed(7)  # dropout and stochastic depth
    model(x).float().square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(model: nn.Module, x: torch.Tensor, mode: str) -> None:
    expected = gradients(model, x)
    set_recompute(model, mode)
    got = gradients(model, x)
    assert any(g.abs().sum() > 0 for g in got.values())
    assert_same(got, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", TIMM)
def test_gradients_are_equal_to_the_bit(name, mode):
    model = make(name, drop_path_rate=0.3, proj_drop_rate=0.2)
    adapt(model, r=4, trainable=["head.*"])
    assert_same_gradients(model, torch.randn(3, 3, *[model.patch_embed.img_size[0]] * 2), mode)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_under_autocast(mode):
    model = make(proj_drop_rate=0.2)
    adapt(model, r=4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_same_gradients(model, torch.randn(2, 3, 64, 64), mode)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_everything_where_everything_trains(mode):
    assert_same_gradients(make(drop_path_rate=0.3), torch.randn(2, 3, 64, 64), mode)


def test_bytes_kept_are_those_of_the_arithmetic():
    """In a frozen block: the inputs of both norms, q, k and v, the attention's output, the MLP's hidden layer (4)."""
    model = make()
    adapt(model, r=4)
    x = torch.randn(2, 3, 64, 64)
    unit = 2 * 17 * 32 * 4  # images x tokens x channels x bytes

    def kept(mode: str) -> float:
        set_recompute(model, mode)
        with SavedTensors(model.parameters()) as saved:
            loss = model.forward_features(x).sum()
        assert loss.requires_grad
        return saved.bytes / unit

    none, mlp, linear, block = map(kept, ["none", *MODES])
    # but for means and deviations of norms and attention, the first block, and the last norm
    assert none == pytest.approx(3 * 10, rel=0.1)
    assert none - mlp == pytest.approx(3 * 4, rel=0.02)
    assert linear == pytest.approx(3 * 2 + 1, rel=0.1)
    assert block == pytest.approx(3 * 1 + 1, rel=0.1)


@pytest.mark.parametrize(
    ("operator", "tensors"),
    [
        (torch.ops.aten._scaled_dot_product_flash_attention.default, 3),
        (torch.ops.aten._scaled_dot_product_efficient_attention.default, 5),
        (torch.ops.aten._scaled_dot_product_cudnn_attention.default, 5),
    ],
)
def test_attention_that_draws_random_numbers_is_computed_again(operator, tensors):
    """Its kernel would not run the second time, and whatever draws after it would get other numbers."""
    for dropout, expected in ((0.0, CheckpointPolicy.MUST_SAVE), (0.1, CheckpointPolicy.PREFER_RECOMPUTE)):
        assert _keep_attention(None, operator, *[None] * tensors, dropout) is expected
        assert _keep_attention(None, operator, *[None] * tensors, dropout_p=dropout) is expected
    assert _keep_attention(None, operator, *[None] * tensors) is CheckpointPolicy.MUST_SAVE
    assert _keep_attention(None, torch.ops.aten.mm.default, None, None) is CheckpointPolicy.PREFER_RECOMPUTE


def test_the_norms_output_is_not_kept():
    model = make()
    adapt(model, r=4, recompute="mlp")
    outputs = []
    for block in model.blocks:
        block.norm2.register_forward_hook(lambda m, i, o: outputs.append(weakref.ref(o)))
    y = model(torch.randn(1, 3, 64, 64))
    gc.collect()
    assert len(outputs) == 3 and all(output() is None for output in outputs)
    y.sum().backward()


@pytest.mark.parametrize("mode", MODES)
def test_structure_and_states_do_not_change_and_merging_undoes_it(mode):
    model = make()
    plain = copy.deepcopy(model)
    adapt(model, r=4, recompute=mode)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert [type(m).__name__ for m in model.blocks] == ["Block"] * 3
    assert isinstance(model.blocks[0], type(plain.blocks[0])) and isinstance(
        model.blocks[0].mlp, type(plain.blocks[0].mlp)
    )
    merge(model)
    assert [type(m) for m in model.modules()] == [type(m) for m in plain.modules()]


def test_modes_follow_each_other():
    model = make()
    types = [type(m) for m in model.modules()]
    for mode in ("mlp", "block", "linear", "mlp", "none"):
        set_recompute(model, mode)
    assert [type(m) for m in model.modules()] == types
    set_recompute(model, "block")
    reset_recompute(model)
    assert [type(m) for m in model.modules()] == types


@pytest.mark.parametrize("mode", MODES)
def test_copies_compute_again_too(mode):
    model = make()
    adapt(model, r=4, recompute=mode)
    x = torch.randn(2, 3, 64, 64)
    twin = copy.deepcopy(model)
    assert_same(gradients(twin, x), gradients(model, x))
    with SavedTensors(model.parameters()) as one:
        y = model(x)
    with SavedTensors(twin.parameters()) as other:
        z = twin(x)
    assert one.bytes == other.bytes and torch.equal(y, z)


@pytest.mark.parametrize("mode", MODES)
def test_pickles_compute_again_too(mode):
    model = make()
    adapt(model, r=4, recompute=mode)
    twin = pickle.loads(pickle.dumps(model))
    assert [type(module) for module in twin.modules()] == [type(module) for module in model.modules()]
    x = torch.randn(2, 3, 64, 64)
    assert_same(gradients(twin, x), gradients(model, x))


@pytest.mark.parametrize("mode", MODES)
def test_nothing_is_computed_again_without_gradients(mode):
    model = make().eval()
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = model(x)
        adapt(model, r=4, recompute=mode)
        assert torch.equal(model(x), expected)
        assert not hasattr(model.blocks[0].norm2(torch.randn(1, 2, 32)), "_normalised_from")


@pytest.mark.parametrize("mode", MODES)
def test_compiled_model_has_the_same_gradients(mode):
    model = make()
    adapt(model, r=4, recompute=mode)
    x = torch.randn(2, 3, 64, 64)
    expected = gradients(model, x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    model.zero_grad()
    compiled(x).square().sum().backward()
    for name, p in model.named_parameters():
        if p.requires_grad:
            torch.testing.assert_close(p.grad, expected[name])


def attending():
    return Attending(nn.MultiheadAttention(8, 2, batch_first=True))


class Bare(nn.Module):
    def __init__(self, *blocks):
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.single = attending() if not blocks else None


@pytest.mark.parametrize(
    ("model", "mode", "message"),
    [
        (lambda: make(), "half", "recompute='half' must be one of 'none', 'mlp', 'linear', 'block'"),
        (lambda: Bare(attending()), "mlp", r"no MLP was found beside the attention in 'blocks\.0'; use 'block'"),
        (lambda: Bare(), "block", r"no block, an element of a list, holds 'single\.attn'"),
    ],
)
def test_bad_input_changes_nothing(model, mode, message):
    model = model()
    types = [type(m) for m in model.modules()]
    with pytest.raises(ValueError, match=message):
        adapt(model, recompute=mode)
    assert [type(m) for m in model.modules()] == types
    assert all(p.requires_grad for p in model.parameters())


def test_pooling_attention_beside_blocks_is_left_alone() -> None:
    model = tiny_vit(global_pool="map", class_token=False)
    adapt(model, r=4)
    x = torch.randn(2, 3, 32, 32)
    gradients = []
    for mode in ("none", "block"):
        set_recompute(model, mode)
        model.zero_grad()
        model(x).square().sum().backward()
        gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad})
    assert any("attn_pool" in key for key in gradients[0])
    assert_same(*gradients)


def test_parallel_block_is_computed_again_as_a_whole() -> None:
    model = timm.create_model("vit_base_patch16_xp_224", depth=2, embed_dim=32, num_heads=2, img_size=32)
    adapt(model, r=4, recompute="block")
    x = torch.randn(2, 3, 32, 32)
    model(x).square().sum().backward()
    again = {n: p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
    set_recompute(model, "none")
    model.zero_grad()
    model(x).square().sum().backward()
    assert again and all(torch.equal(again[n], p.grad) for n, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize("mode", ["linear", "block"])
def test_running_statistics_move_once(mode: str) -> None:
    """XCiT has batch norms in its blocks."""
    model = timm.create_model("xcit_nano_12_p8_224", depth=2, num_classes=0, img_size=32).train()
    other, x = copy.deepcopy(model), torch.randn(2, 3, 32, 32)
    for one in (model, other):
        adapt(one, r=4, recompute=mode if one is other else "none")
    for _ in range(2):
        assert_same(gradients(other, x), gradients(model, x))
    assert int(model.state_dict()["blocks.0.local_mp.bn.num_batches_tracked"]) == 2
    assert_same(other.state_dict(), model.state_dict())


class _Scaling(nn.Module):
    """A block that writes to what its norm gives, between the norm and the MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attn = nn.LayerNorm(8), timm.layers.Attention(8, num_heads=2)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attn(x)
        y = self.norm(x)
        y *= 2
        return x + self.mlp(y)


def test_a_norm_whose_output_is_written_to_before_the_mlp() -> None:
    model = nn.Sequential(_Scaling(), _Scaling())
    assert_same_gradients(model, torch.randn(2, 5, 8), "mlp")
