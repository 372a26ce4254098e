"""A merged model is the plain one: same modules, same outputs, and it compiles and exports as that one does."""

import copy
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.nets import tiny_vit
from helpers.optional import needs
from mmengine.registry import DefaultScope
from mmseg.models import EncoderDecoder, SwinTransformer, VisionTransformer
from torch import Tensor, nn

from apla_mm.method import PartialLinear, adapt, merge
from apla_mm.method.class_change import Changed
from apla_mm.method.memory.recompute import MODES
from apla_mm.models.backbones import APLAViT

pytestmark = pytest.mark.slow

SIZE = 32
VIT = dict(embed_dim=32, depth=2, num_heads=2)
X = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def make_segmentor() -> nn.Module:
    backbone = dict(
        type="APLAViT", model_name="vit_tiny_patch16_224", pretrained=False, img_size=SIZE, model_kwargs=VIT
    )
    head = dict(type="FCNHead", in_channels=32, channels=8, num_classes=3, num_convs=1, in_index=0)
    if not DefaultScope.check_instance_created("mmseg"):
        DefaultScope.get_instance("mmseg", scope_name="mmseg")
    with DefaultScope.overwrite_default_scope("mmseg"):
        return EncoderDecoder(backbone, head)


MODELS: dict[str, Callable[[], nn.Module]] = {
    "timm ViT": tiny_vit,
    "APLAViT": lambda: APLAViT("vit_tiny_patch16_224", (0, 1), pretrained=False, img_size=SIZE, model_kwargs=VIT),
    "mmseg ViT": lambda: VisionTransformer(
        img_size=SIZE, patch_size=16, embed_dims=32, num_layers=2, num_heads=2, out_indices=(0, 1)
    ),
    "mmseg Swin": lambda: SwinTransformer(
        pretrain_img_size=SIZE, embed_dims=16, depths=(2,), num_heads=(2,), strides=(4,), out_indices=[0], window_size=4
    ),
    "mmseg EncoderDecoder": make_segmentor,
}


def forward(model: nn.Module) -> list[Tensor]:
    y = model(X)
    return [y] if isinstance(y, Tensor) else list(y)


def outputs(model: nn.Module) -> list[Tensor]:
    model.eval()
    with torch.no_grad():
        return forward(model)


def make_trained(make: Callable[[], nn.Module], recompute: str = "none") -> nn.Module:
    """An adapted model after two steps of training; nothing has seen the second yet."""
    model = make()
    adapt(model, r=4, recompute=recompute)
    before = outputs(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        sum((y - 1).square().mean() for y in forward(model)).backward()
        optimizer.step()
    assert all((a - b).abs().max() > 1e-3 for a, b in zip(before, outputs(copy.deepcopy(model)), strict=True))
    model.eval()
    return model


def assert_close(got: list[Tensor], expected: list[Tensor], rtol: float, atol: float) -> None:
    for a, b in zip(got, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def describe(model: nn.Module) -> list[tuple[Any, ...]]:
    """Name, class and attributes of each module; of tables of parameters, buffers, modules and hooks the keys."""

    def attribute(value: Any) -> Any:
        if isinstance(value, dict | set):
            return list(value)
        return value if isinstance(value, int | float | str | tuple | None) else type(value)

    return [(n, type(m), {k: attribute(v) for k, v in vars(m).items()}) for n, m in model.named_modules()]


@pytest.mark.parametrize("recompute", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_nothing_is_left_over(name, recompute):
    plain = MODELS[name]()
    plain.eval()
    model = merge(make_trained(MODELS[name], recompute))
    assert describe(model) == describe(plain)
    state, expected = model.state_dict(), plain.state_dict()
    assert [(k, v.shape, v.dtype) for k, v in state.items()] == [(k, v.shape, v.dtype) for k, v in expected.items()]
    assert list(state._metadata.items()) == list(expected._metadata.items())


@pytest.mark.parametrize("name", MODELS)
def test_outputs_are_those_of_the_plain_model_and_of_the_adapted_one(name):
    model = make_trained(MODELS[name])
    adapted = outputs(copy.deepcopy(model))
    plain = MODELS[name]()
    plain.load_state_dict(merge(model).state_dict())
    for own, other in zip(plain.parameters(), model.parameters(), strict=True):
        own.requires_grad_(other.requires_grad)  # torch rounds nn.MultiheadAttention otherwise where all is frozen
    merged = outputs(model)
    assert all(torch.equal(a, b) for a, b in zip(merged, outputs(plain), strict=True))
    assert_close(merged, adapted, 1e-5, 1e-6)


# inductor takes seconds for a ViT, and most of a minute for a Swin
@pytest.mark.parametrize(("name", "backend"), [("timm ViT", "inductor"), *((name, "aot_eager") for name in MODELS)])
def test_compiled(name, backend):
    model = merge(make_trained(MODELS[name]))
    expected = outputs(model)
    assert_close(outputs(torch.compile(model, backend=backend)), expected, 1e-4, 1e-5)


@pytest.mark.parametrize("strict", [False, True])
def test_torch_export_of_an_adapted_model_sees_the_last_step(strict):
    model = make_trained(MODELS["timm ViT"])
    expected = outputs(copy.deepcopy(model))
    state = {name: tensor.clone() for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    exported = torch.export.export(model, (X,), strict=strict)
    assert all(torch.equal(t, state[name]) for name, t in [*model.named_parameters(), *model.named_buffers()])
    assert_close(forward(exported.module()), expected, 1e-5, 1e-6)


def run_onnx(model: nn.Module, path: Path) -> tuple[list[Tensor], Counter[tuple[str, str]]]:
    """Outputs of the exported model, and how often which operator occurs in it."""
    onnx, onnxruntime, _ = map(needs, ("onnx", "onnxruntime", "onnxscript"))
    torch.onnx.export(model, (X,), path, dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: X.numpy()})
    operators = Counter((node.domain, node.op_type) for node in onnx.load(path).graph.node)
    return [torch.from_numpy(array) for array in got], operators


@pytest.mark.parametrize("name", MODELS)
def test_onnx(name, tmp_path):
    model = make_trained(MODELS[name])
    partial = next(m for m in model.modules() if isinstance(m, PartialLinear))
    expected = outputs(copy.deepcopy(model))
    adapted, its_operators = run_onnx(model, tmp_path / "adapted.onnx")
    assert not torch.equal(partial.weight[partial.trained.channels], partial.trained.weight)  # nothing was written
    attention_is_another = any(isinstance(m, Changed) and not isinstance(m, PartialLinear) for m in model.modules())
    merged, operators = run_onnx(merge(model), tmp_path / "merged.onnx")
    assert its_operators == operators or attention_is_another
    assert {domain for domain, _ in [*operators, *its_operators]} == {""}
    assert_close(adapted, expected, 1e-4, 1e-5)
    assert_close(merged, expected, 1e-4, 1e-5)
