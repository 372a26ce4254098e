import copy
import importlib
import pickle

import pytest
import torch
from helpers.comparisons import assert_same
from helpers.nets import Attending
from helpers.optional import needs
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from apla_mm.measure import SavedTensors
from apla_mm.method import adapt, find_projections, merge
from apla_mm.method.attention.fused import FusedAttention
from apla_mm.method.memory.recompute import MODES, set_recompute

PICTURES, W, WINDOW, C, HEADS = 2, 3, (2, 3), 8, 2
N = WINDOW[0] * WINDOW[1]
SWIN = dict(embed_dims=C, num_heads=HEADS, window_size=WINDOW)
BEIT = dict(**SWIN, bias="qv_bias")
TWINS = dict(embed_dims=C, num_heads=HEADS, window_size=3)

#: class -> arguments
KINDS = {
    "mmseg.models.backbones.swin.WindowMSA": SWIN,
    "mmdet.models.backbones.swin.WindowMSA": dict(SWIN, qkv_bias=False, qk_scale=0.3),
    "mmpretrain.models.utils.attention.WindowMSA": SWIN,
    "mmpretrain.models.utils.attention.WindowMSAV2": SWIN,
    "mmseg.models.backbones.beit.BEiTAttention": BEIT,
    "mmseg.models.backbones.mae.MAEAttention": dict(BEIT, bias=True),
    "mmpretrain.models.utils.attention.BEiTAttention": dict(BEIT, use_rel_pos_bias=True),
    "mmseg.models.backbones.twins.LocallyGroupedSelfAttention": TWINS,
    "mmpretrain.models.backbones.twins.LocallyGroupedSelfAttention": dict(TWINS, qkv_bias=True),
    "mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE": dict(embed_dims=C, num_heads=HEADS, qkv_bias=True),
}
WINDOWED = [name for name in KINDS if "Window" in name]


def find(name):
    module, _, cls = name.rpartition(".")
    needs(module.partition(".")[0])
    return getattr(importlib.import_module(module), cls)


def make_plain(name, dtype=torch.double, **kwargs):
    cls = find(name)
    if "RoPE" in name:
        rope = find("mmpretrain.models.utils.RotaryEmbeddingFast")
        kwargs.setdefault("rope", rope(C // HEADS, WINDOW))
    torch.manual_seed(0)
    plain = Attending(cls(**{**KINDS[name], **kwargs}))
    for p in plain.parameters():
        nn.init.normal_(p, std=0.5)
    if "V2" in name:
        nn.init.constant_(plain.attn.logit_scale[0], 5.0)  # more than it counts as
    return plain.to(dtype).train()


def make_pair(name, trainable=(), **kwargs):
    plain = make_plain(name, **kwargs)
    adapted = copy.deepcopy(plain)
    report = adapt(adapted, r=3, trainable=trainable)
    assert isinstance(adapted.attn, FusedAttention) and isinstance(adapted.attn, type(plain.attn))
    return plain, adapted, list(report.projections[0].channels)


def window_mask(dtype=torch.float):
    return torch.where(torch.rand(W, N, N) < 0.4, -100.0, 0.0).to(dtype)


def arguments(name, masked, dtype=torch.double):
    """Of all but the first, which is x."""
    if "Window" in name:
        return torch.randn(PICTURES * W, N, C, dtype=dtype), dict(mask=window_mask() if masked else None)
    if "Locally" in name:
        h, w = (5, 4) if masked else (6, 4)
        return torch.randn(PICTURES, h * w, C, dtype=dtype), dict(hw_shape=(h, w))
    x = torch.randn(PICTURES, 1 + N, C, dtype=dtype)
    if "RoPE" in name:
        return x, dict(patch_resolution=WINDOW)
    bias = torch.randn(HEADS, 1 + N, 1 + N, dtype=dtype)
    return x, dict(rel_pos_bias=bias) if masked and "mmpretrain" in name else {}


def assert_alike(plain, adapted, channels, x, kwargs, rtol=1e-9, atol=1e-10):
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    y1, y2 = plain(x1, **kwargs), adapted(x2, **kwargs)
    torch.testing.assert_close(y2, y1, rtol=rtol, atol=atol)
    grad = torch.randn_like(y1)
    y1.backward(grad)
    y2.backward(grad)
    torch.testing.assert_close(x2.grad, x1.grad, rtol=10 * rtol, atol=10 * atol)
    expected = {name: p.grad for name, p in plain.named_parameters()}
    got = {name: p.grad for name, p in adapted.named_parameters() if p.requires_grad}
    for part in ("weight", "bias"):
        expected[f"attn.proj.trained.{part}"] = expected[f"attn.proj.{part}"][channels]
    for name, gradient in got.items():
        torch.testing.assert_close(
            gradient, expected[name], rtol=10 * rtol, atol=10 * atol, msg=lambda m, n=name: n + m
        )
    return got


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_outputs_and_gradients_are_the_plain_modules(name, masked):
    plain, adapted, channels = make_pair(name)
    got = assert_alike(plain, adapted, channels, *arguments(name, masked))
    assert set(got) == {"attn.proj.trained.weight", "attn.proj.trained.bias"}
    plain, adapted, channels = make_pair(name, dtype=torch.float)
    assert_alike(plain, adapted, channels, *arguments(name, masked, torch.float), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_whatever_else_trains_has_the_plain_gradient(name, masked):
    plain = make_plain(name)
    others = [n for n, _ in plain.named_parameters() if not n.startswith("attn.proj.")]
    plain, adapted, channels = make_pair(name, others)
    x, kwargs = arguments(name, masked)
    got = assert_alike(plain, adapted, channels, x, kwargs)
    assert set(got) >= set(others)
    assert all(gradient.any() for gradient in got.values())


@pytest.mark.parametrize("name", WINDOWED[:1])
def test_the_table_trains_where_nothing_before_it_does(name):
    plain, adapted, _ = make_pair(name, ["*relative_position_bias_table"])
    x, kwargs = arguments(name, True)
    for model in (plain, adapted):
        model(x, **kwargs).square().sum().backward()
    gradient = adapted.attn.relative_position_bias_table.grad
    torch.testing.assert_close(gradient, plain.attn.relative_position_bias_table.grad, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_without_position_or_biases(name, masked):
    without = {
        "mmpretrain.models.utils.attention.WindowMSAV2": dict(qkv_bias=False),
        "mmseg.models.backbones.beit.BEiTAttention": dict(bias=False),
        "mmpretrain.models.utils.attention.BEiTAttention": dict(use_rel_pos_bias=False, window_size=None, bias=False),
        "mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE": dict(rope=None, with_cls_token=masked),
    }.get(name, dict(qkv_bias=False) if "bias" not in KINDS[name] else dict(bias=False))
    plain, adapted, channels = make_pair(name, **without)
    assert_alike(plain, adapted, channels, *arguments(name, masked))


def test_rotation_without_a_class_token():
    name = "mmpretrain.models.backbones.vit_eva02.AttentionWithRoPE"
    plain, adapted, channels = make_pair(name, with_cls_token=False)
    x, kwargs = arguments(name, False)
    assert_alike(plain, adapted, channels, x[:, 1:], kwargs)


@pytest.mark.parametrize("shape", [(5, 6), (6, 6), (2, 2)])
def test_groups_of_any_image(shape):
    plain, adapted, channels = make_pair("mmseg.models.backbones.twins.LocallyGroupedSelfAttention")
    x = torch.randn(PICTURES, shape[0] * shape[1], C, dtype=torch.double)
    assert_alike(plain, adapted, channels, x, dict(hw_shape=shape))


# what is kept


def kept(model, *args, ignore=(), **kwargs):
    with SavedTensors([*model.parameters(), *model.buffers(), *ignore]) as saved:
        y = model(*args, **kwargs)
    assert any(t.requires_grad for t in y)
    return saved.bytes


@pytest.mark.parametrize("trainable", [(), ["*relative_position_bias_table"]])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", WINDOWED[:3])
def test_kept_are_qkv_and_what_is_projected(name, masked, trainable):
    _, adapted, _ = make_pair(name, trainable, dtype=torch.float)
    x, kwargs = arguments(name, masked, torch.float)
    before = kept(adapted, x, **kwargs)  # x trains nothing, so q, k and v are kept for the table alone
    after = kept(adapted, x.requires_grad_(), **kwargs)
    mask = W * N * N if masked else 0
    output = PICTURES * W * N * C
    assert after == 4 * ((3 + 1 + 1) * output + mask)
    assert before == (after if trainable else 4 * (1 + 1) * output)


@pytest.mark.parametrize("name", KINDS)
def test_no_scores_are_kept(name, monkeypatch):
    _, fused, _ = make_pair(name, dtype=torch.float)
    monkeypatch.setattr("apla_mm.method.attention.fused._FUSED", {})
    written_out = make_plain(name, torch.float)
    adapt(written_out, r=3)
    x, kwargs = arguments(name, False, torch.float)
    x.requires_grad_()
    scores = 4 * HEADS * PICTURES * {24: 4 * 6 * 9, 6: W * 6 * 6, 7: 7 * 7}[x.shape[1]]
    assert kept(fused, x, **kwargs) <= kept(written_out, x, **kwargs) - scores


@pytest.mark.parametrize("name", ["mmseg.models.backbones.twins.LocallyGroupedSelfAttention"])
def test_what_is_kept_grows_with_the_tokens_alone(name):
    _, adapted, _ = make_pair(name, dtype=torch.float)
    _, larger, _ = make_pair(name, dtype=torch.float, window_size=9)
    x = torch.randn(1, 18 * 18, C).requires_grad_()
    assert kept(adapted, x, (18, 18)) == kept(larger, x, (18, 18))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", KINDS)
def test_the_fused_kernel_is_taken(name, masked):
    _, adapted, _ = make_pair(name, dtype=torch.float)
    x, kwargs = arguments(name, masked, torch.float)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # an error where there is none for these arguments
        adapted(x.requires_grad_(), **kwargs).sum().backward()


class Largest(TorchDispatchMode):
    """Finds the largest tensor made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = [t.untyped_storage().nbytes() // t.itemsize for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.numel = max([self.numel, *made])
        return result


@pytest.mark.parametrize("name", WINDOWED[:3])  # SwinV2's bias comes from larger tensors
def test_scores_of_all_windows_are_never_made(name):
    h, w = 4, 6
    _, adapted, _ = make_pair(name, dtype=torch.float, window_size=(h, w))
    x = torch.randn(5 * W, h * w, C).requires_grad_()
    mask = torch.zeros(W, h * w, h * w)
    with Largest() as largest:
        adapted(x, mask=mask).sum().backward()
    assert largest.numel == max(3 * x.numel(), HEADS * mask.numel()) < 5 * HEADS * mask.numel()


# dropout


def test_dropout_runs_in_training_alone():
    plain, adapted, _ = make_pair(WINDOWED[0], attn_drop_rate=0.5)
    x, kwargs = arguments(WINDOWED[0], True)
    assert not torch.equal(adapted(x, **kwargs), adapted(x, **kwargs))
    torch.testing.assert_close(adapted.eval()(x, **kwargs), plain.eval()(x, **kwargs), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_gradient_is_that_of_the_dropout_that_was_drawn(masked):
    _, adapted, _ = make_pair(WINDOWED[0], attn_drop_rate=0.5)
    x, kwargs = arguments(WINDOWED[0], masked)

    def run(x):
        torch.manual_seed(3)
        y = adapted(x, **kwargs)
        torch.manual_seed(4)
        return y

    assert torch.autograd.gradcheck(run, x.requires_grad_(), fast_mode=True)


@pytest.mark.parametrize("name", KINDS)
def test_what_is_projected_is_dropped(name):
    _, adapted, _ = make_pair(name)
    adapted.attn.proj_drop.p = 1.0
    x, kwargs = arguments(name, False)
    assert not adapted(x, **kwargs).any()


# what it stays


@pytest.mark.parametrize("name", KINDS)
def test_state_dict_hooks_and_merge(name):
    plain = make_plain(name)
    calls = []
    plain.attn.register_forward_hook(lambda m, i, o: calls.append("attn"))
    plain.attn.proj.register_forward_hook(lambda m, i, o: calls.append("proj"))
    adapted = copy.deepcopy(plain).eval()
    adapt(adapted, r=3)
    assert isinstance(adapted.attn, FusedAttention) and not adapted.attn.training
    assert type(adapted.attn).__name__ == type(plain.attn).__name__
    assert list(adapted.state_dict()) == list(plain.state_dict())
    with torch.no_grad():
        adapted.attn.proj.trained.weight.add_(1)
        x, kwargs = arguments(name, True)
        expected = adapted(x, **kwargs)
        assert calls == ["proj", "attn"]
        merge(adapted)
        assert [type(m) for m in adapted.modules()] == [type(m) for m in plain.modules()]
        assert vars(adapted.attn).keys() == vars(plain.attn).keys()
        torch.testing.assert_close(adapted(x, **kwargs), expected)
    assert calls == ["proj", "attn"] * 2


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_compute_and_train_alike(copied):
    plain, adapted, channels = make_pair(WINDOWED[0])
    twin = copied(adapted)
    assert type(twin.attn) is type(adapted.attn)
    x, kwargs = arguments(WINDOWED[0], True)
    assert_alike(plain, twin, channels, x, kwargs)
    assert all(p.grad is None for p in adapted.parameters())
    assert type(merge(twin).attn) is type(plain.attn)


def test_loading_and_casting_afterwards():
    _, adapted, channels = make_pair(WINDOWED[0], dtype=torch.float)
    other = make_plain(WINDOWED[0], torch.float)
    with torch.no_grad():
        for p in other.parameters():
            p.normal_()
    adapted.load_state_dict(other.state_dict())
    assert_alike(other.double(), adapted.double(), channels, *arguments(WINDOWED[0], True))


def test_adapting_twice_leaves_it_alone():
    _, adapted, _ = make_pair(WINDOWED[0])
    module = adapted.attn
    assert [p.name for p in find_projections(adapted)] == ["attn.proj"]
    adapt(adapted, r=3)
    assert adapted.attn is module


def test_a_forward_of_its_own_stays():
    class Doubled(find(WINDOWED[0])):
        def forward(self, x, mask=None):
            return 2 * super().forward(x, mask)

    plain = Attending(Doubled(**SWIN))
    x, kwargs = arguments(WINDOWED[0], True, torch.float)
    expected = plain(x, **kwargs)
    adapt(plain, r=3)
    assert type(plain.attn) is Doubled
    torch.testing.assert_close(plain(x, **kwargs), expected)


# precision and compilation


@pytest.mark.parametrize("name", KINDS)
def test_autocast(name):
    plain, adapted, channels = make_pair(name, dtype=torch.float)
    x, kwargs = arguments(name, True, torch.float)
    results = []
    for model, projection in ((plain, plain.attn.proj.weight), (adapted, adapted.attn.proj.trained.weight)):
        leaf = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y = model(leaf, **kwargs)
        y.float().square().sum().backward()
        results.append((y, leaf.grad, projection.grad if model is adapted else projection.grad[channels]))
    for got, expected in zip(results[1], results[0], strict=True):
        assert got.dtype == expected.dtype
        assert (got - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("name", WINDOWED)
def test_half_precision(name, monkeypatch):
    _, adapted, _ = make_pair(name, dtype=torch.float)
    x, kwargs = arguments(name, True, torch.float)
    expected = adapted(x, **kwargs)
    kernel, masks = torch.nn.functional.scaled_dot_product_attention, []

    def attend(*args, attn_mask, **kwargs):
        masks.append(attn_mask)
        return kernel(*args, attn_mask=attn_mask, **kwargs)

    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", attend)
    got = adapted.bfloat16()(x.bfloat16(), **kwargs)
    assert [mask.dtype for mask in masks] == [torch.bfloat16] * PICTURES  # no kernel of CUDA takes another
    assert (got - expected).norm() < 0.03 * expected.norm()


@pytest.mark.parametrize("name", KINDS)
def test_compiled(name):
    torch._dynamo.reset()  # or all kinds count as one function that is compiled too often
    plain, adapted, channels = make_pair(name, ["*relative_position_bias_table"] if "WindowMSA" in name[-9:] else [])
    compiled = torch.compile(adapted, fullgraph=True, backend="aot_eager")
    x, kwargs = arguments(name, True)
    x1, x2 = x.clone().requires_grad_(), x.clone().requires_grad_()
    plain(x1, **kwargs).square().sum().backward()
    compiled(x2, **kwargs).square().sum().backward()
    torch.testing.assert_close(x2.grad, x1.grad, rtol=1e-8, atol=1e-10)
    torch.testing.assert_close(adapted.attn.proj.trained.weight.grad, plain.attn.proj.weight.grad[channels])


# whole backbones

SIZE = 40  # 10 x 10 patches: windows of 4 need padding


def make_swin(package, **kwargs):
    swin = find(f"{package}.models.backbones.swin.SwinTransformer")
    torch.manual_seed(0)
    model = swin(
        pretrain_img_size=SIZE, embed_dims=16, depths=(2, 2), num_heads=(2, 4), strides=(4, 2), out_indices=(0, 1),
        window_size=4, **kwargs,
    )  # fmt: skip
    for name, p in model.named_parameters():
        if name.endswith("bias_table"):
            nn.init.normal_(p, std=0.5)
    model.train()  # returns nothing
    return model


def gradients(model, x):
    torch.manual_seed(7)  # dropout and stochastic depth
    model.zero_grad()
    sum(y.square().sum() for y in model(x)).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("package", ["mmseg", "mmdet"])
def test_swin_computes_what_the_plain_one_does(package):
    plain = make_swin(package, drop_path_rate=0.2).double()
    adapted = copy.deepcopy(plain)
    report = adapt(adapted, r=4, trainable=["*relative_position_bias_table"])
    assert sum(isinstance(m, FusedAttention) for m in adapted.modules()) == 4
    x = torch.randn(2, 3, SIZE, SIZE, dtype=torch.double)
    expected, got = gradients(plain, x), gradients(adapted, x)
    for p in report.projections:
        for part in ("weight", "bias"):
            expected[f"{p.name}.trained.{part}"] = expected[f"{p.name}.{part}"][list(p.channels)]
    assert sum(name.endswith("bias_table") for name in got) == 4 and len(got) == 4 * 3
    for name, gradient in got.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-7, atol=1e-9, msg=lambda m, n=name: n + m)
    plain.eval(), adapted.eval()
    for y, expected in zip(adapted(x), plain(x), strict=True):
        torch.testing.assert_close(y, expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("package", ["mmseg", "mmdet"])
def test_swin_keeps_no_scores(package, monkeypatch):
    written_out, fused = make_swin(package), make_swin(package)
    adapt(fused, r=4)
    monkeypatch.setattr("apla_mm.method.attention.fused._FUSED", {})
    adapt(written_out, r=4)
    x = torch.randn(2, 3, SIZE, SIZE)
    # windows of 12 x 12 and 8 x 8 patches; nothing is kept in the first block, and the second of each stage has a mask
    windows, scores = (9, 4), (4 * 2 * 9 * 2 * 256, 4 * 2 * 4 * 4 * 256)
    masks = 4 * sum(windows) * 256
    assert kept(written_out, x) - kept(fused, x) == scores[0] + 2 * scores[1] - masks


@pytest.mark.parametrize("mode", MODES[1:])
@pytest.mark.parametrize("package", ["mmseg", "mmdet"])
def test_recompute(package, mode):
    model = make_swin(package, drop_path_rate=0.2, attn_drop_rate=0.2)
    adapt(model, r=4, trainable=["*relative_position_bias_table"])
    x = torch.randn(2, 3, SIZE, SIZE)
    expected = gradients(model, x)
    set_recompute(model, mode)
    got = gradients(model, x)
    assert_same(got, expected)


def test_checkpoints_of_the_backbone_itself():
    model, checkpointed = make_swin("mmseg", attn_drop_rate=0.2), make_swin("mmseg", attn_drop_rate=0.2, with_cp=True)
    for m in (model, checkpointed):
        adapt(m, r=4, trainable=["patch_embed.*"])
    x = torch.randn(2, 3, SIZE, SIZE)
    expected, got = gradients(model, x), gradients(checkpointed, x)
    assert_same(got, expected)
