"""Real parts of mmdet's, and whole models of the configs made small, against themselves."""

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.small_configs import shrink
from mmcv.cnn import ConvModule
from mmdet.models import *  # noqa: F403  # registers the parts
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads.bbox_heads import Shared4Conv1FCBBoxHead
from mmdet.models.roi_heads.mask_heads import FCNMaskHead
from mmdet.structures.mask import BitmapMasks, PolygonMasks
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope, init_default_scope
from mmengine.structures import InstanceData
from torch import Tensor, nn

from apla_mm.data.synthetic_batch import synthetic_batch
from apla_mm.measure import SavedTensors
from apla_mm.models.heads import lean_detectors
from apla_mm.models.heads.lean_detectors import make_detector_lean, make_detector_plain

BN, GN = dict(type="BN"), dict(type="GN", num_groups=2)
CONFIGS = {
    "Mask R-CNN": "det/apla_vitb_coco.py",
    "DINO": "det/dino_swin-t_apla_8xb2-90k_coco-1333x800.py",
    "Mask2Former": "seg/mask2former_swin-t_apla_8xb2-160k_ade20k-512x512.py",
}


@pytest.fixture
def float64(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """In float64 what these toolboxes have in float32 by name or by default."""
    before = torch.get_default_dtype()
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(torch, "float32", torch.float64)
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def gradients(module: nn.Module, loss: Tensor) -> dict[str, Tensor]:
    module.zero_grad()
    loss.backward()
    found = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return found | {f"state {name}": value.clone() for name, value in module.state_dict().items()}


def assert_equal(found: dict[str, Tensor], right: dict[str, Tensor], tolerance: float = 1e-9) -> None:
    assert list(found) == list(right)
    for name, value in right.items():
        least = tolerance * (1 + float(value.detach().abs().max()))
        assert float((found[name] - value).abs().max()) <= least, name


def small_model(kind: str) -> tuple[nn.Module, dict[str, Any]]:
    cfg = Config.fromfile(ROOT / "configs" / CONFIGS[kind])
    shrink(cfg)
    cfg.model.backbone.pop("apla", None)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(cfg.model).train()
    model.init_weights()
    data = model.data_preprocessor(synthetic_batch(model, 64, 2), training=True)
    return model, data


def losses_and_gradients(model: nn.Module, data: dict[str, Any]) -> dict[str, Tensor]:
    torch.manual_seed(1)
    losses = model(**copy.deepcopy(data), mode="loss")
    total, _ = model.parse_losses(losses)
    flat = {name: value for name, value in losses.items() if isinstance(value, Tensor)}
    return {**flat, **gradients(model, total)}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_whole_models(kind: str, recompute: bool, request: pytest.FixtureRequest) -> None:
    in_float32 = kind == "Mask R-CNN"  # mmdet makes anchors of float32
    if not in_float32:
        request.getfixturevalue("float64")
    model, data = small_model(kind)
    right = losses_and_gradients(model, data)
    plain = {name: type(module) for name, module in model.named_modules()}
    assert make_detector_lean(model, recompute)
    assert_equal(losses_and_gradients(model, data), right, 1e-4 if in_float32 else 1e-9)
    make_detector_plain(model)
    assert {name: type(module) for name, module in model.named_modules()} == plain
    assert not any("recomputes" in vars(module) for module in model.modules())


@pytest.mark.parametrize("kind", ["DINO", "Mask2Former"])
def test_recomputed_models_keep_less_and_predict_the_same(kind: str) -> None:
    model, data = small_model(kind)
    state = list(model.state_dict())

    def kept() -> int:
        torch.manual_seed(1)
        with SavedTensors([*model.parameters(), *model.buffers()], model) as saved:
            loss = model.parse_losses(model(**copy.deepcopy(data), mode="loss"))[0]
        assert loss.requires_grad
        return saved.bytes - saved.of("backbone")

    before, names = kept(), make_detector_lean(model, recompute=True)
    assert kept() < 0.8 * before
    assert make_detector_lean(model, recompute=False) and set(names) <= set(dict(model.named_modules()))
    assert list(model.state_dict()) == state
    copied = copy.deepcopy(model)
    assert [type(module) for module in copied.modules()] == [type(module) for module in model.modules()]


class Sampled:
    def __init__(self, boxes: Tensor, of: Tensor) -> None:
        self.pos_priors, self.pos_assigned_gt_inds = boxes, of


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("budget", [2**25, 1])
def test_mask_targets(budget: int, soft: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lean_detectors, "MASK_BYTES", budget)
    head = FCNMaskHead(num_convs=1, in_channels=4, conv_out_channels=4, num_classes=3)
    draw = np.random.RandomState(0)
    torch.manual_seed(0)
    corner = torch.rand(12, 2) * 30 - 4  # some stick out
    boxes = torch.cat([corner, corner + 1 + torch.rand(12, 2) * 25], 1)
    of = torch.tensor([4, 0, 0, 2, 4, 4, 2, 0, 1, 1, 4, 2])  # none of 3
    polygon = [[np.array([2.0, 2, 30, 3, 20, 28])]] * 2
    sampled = [Sampled(boxes, of), Sampled(boxes[:0], of[:0]), Sampled(boxes[:2], torch.tensor([1, 0]))]
    masks = [BitmapMasks(draw.randint(0, 2, (5, 40, 36)).astype(np.uint8), 40, 36)] * 2
    masks.append(masks[0] if soft else PolygonMasks(polygon, 40, 36))
    cfg, instances = ConfigDict(mask_size=(7, 9), soft_mask_target=soft), [InstanceData(masks=m) for m in masks]
    right = head.get_targets(sampled, instances, cfg)
    assert make_detector_lean(head) == [""]
    found = head.get_targets(sampled, instances, cfg)
    assert found.dtype == right.dtype and torch.equal(found, right)


PARTS: dict[str, Any] = {
    "mask head": lambda: (
        FCNMaskHead(num_convs=2, in_channels=4, conv_out_channels=4, num_classes=3, norm_cfg=BN),
        torch.randn(5, 4, 6, 6),
    ),
    "mask head without norms": lambda: (
        FCNMaskHead(num_convs=2, in_channels=4, conv_out_channels=4, num_classes=3),
        torch.randn(5, 4, 6, 6),
    ),
    "box head": lambda: (
        Shared4Conv1FCBBoxHead(
            in_channels=4,
            conv_out_channels=4,
            fc_out_channels=8,
            roi_feat_size=3,
            num_classes=3,
            norm_cfg=BN,
            loss_cls=dict(type="CrossEntropyLoss"),
        ),
        torch.randn(5, 4, 3, 3),
    ),
    "RPN": lambda: (RPNHead(in_channels=4, feat_channels=4, num_convs=2), [torch.randn(2, 4, 6, 5)]),
    "RPN of one convolution": lambda: (RPNHead(in_channels=4, feat_channels=4), [torch.randn(2, 4, 6, 5)]),
}


@pytest.mark.parametrize("recompute", [False, True], ids=["kept", "recomputed"])
@pytest.mark.parametrize("kind", PARTS)
def test_parts(kind: str, recompute: bool) -> None:
    with DefaultScope.overwrite_default_scope("mmdet"):
        torch.manual_seed(0)
        head, x = PARTS[kind]()
    head.double().train()
    x = [one.double() for one in x] if isinstance(x, list) else x.double()
    lean = copy.deepcopy(head)
    assert make_detector_lean(lean, recompute) or kind == "box head"

    def step(part: nn.Module) -> dict[str, Tensor]:
        outputs = part(x)
        outputs = [outputs] if isinstance(outputs, Tensor) else [o[0] if isinstance(o, list) else o for o in outputs]
        named = {f"output {i}": output for i, output in enumerate(outputs)}
        return {**named, **gradients(part, sum(output.square().mean() for output in outputs))}

    assert_equal(step(lean), step(head), 1e-12)


def test_parts_with_methods_of_their_own_are_left_alone() -> None:
    class Own(FCNMaskHead):
        def get_targets(self, *inputs: Any) -> Any:
            raise NotImplementedError

    head = Own(num_convs=1, in_channels=4, conv_out_channels=4, num_classes=3)
    assert make_detector_lean(head) == [] and type(head) is Own
    assert make_detector_lean(ConvModule(4, 4, 1)) == []
