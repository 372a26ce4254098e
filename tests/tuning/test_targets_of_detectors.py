"""Transformers of detectors by target=: losses and the chosen channels' gradients are the plain model's."""

import copy
from pathlib import Path
from typing import Any

import mmdet
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from apla_mm.data.synthetic_batch import synthetic_batch
from apla_mm.method import PartialLinear
from apla_mm.tuning.adapt_runner import adapt_parts

pytestmark = pytest.mark.slow

CONFIGS = Path(mmdet.__file__).parent / ".mim/configs"


def make(name: str) -> nn.Module:
    """A detector of mmdet's, its layers few and its backbone ResNet-18."""
    cfg = Config.fromfile(CONFIGS / f"{name}.py").model
    cfg.backbone.update(depth=18, init_cfg=None)
    wide = [64, 128, 256, 512]
    neck = cfg.get("neck")
    if neck is not None:
        neck.in_channels = wide[-len(neck.in_channels) :]
    if "panoptic_head" in cfg:
        head = cfg.panoptic_head
        head.update(in_channels=wide, num_queries=10)
        head.transformer_decoder.num_layers = 3
        if "encoder" in head.pixel_decoder and "num_layers" in head.pixel_decoder.encoder:
            head.pixel_decoder.encoder.num_layers = 1
        cfg.train_cfg.num_points = 64
    else:
        cfg.num_queries = 10
        cfg.encoder.num_layers, cfg.decoder.num_layers = 1, 2
        if "dn_cfg" in cfg:
            cfg.dn_cfg.group_cfg.num_dn_queries = 4
            cfg.test_cfg.max_per_img = 10
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope("mmdet"):
        model = MODELS.build(cfg)
    model.init_weights()
    return model


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("detr/detr_r50_8xb2-150e_coco", {"encoder": 1, "decoder": 4}),
        ("conditional_detr/conditional-detr_r50_8xb2-50e_coco", {"encoder": 1, "decoder": 4}),
        ("dab_detr/dab-detr_r50_8xb2-50e_coco", {"decoder": 4}),
        ("deformable_detr/deformable-detr_r50_16xb2-50e_coco", {"encoder": 1, "decoder": 4}),
        ("dino/dino-4scale_r50_8xb2-12e_coco", {"encoder": 1, "decoder": 4}),
        (
            "mask2former/mask2former_r50_8xb2-lsj-50e_coco",
            {"panoptic_head.pixel_decoder": 1, "panoptic_head.transformer_decoder": 6},
        ),
    ],
    ids=lambda value: value.partition("/")[0] if isinstance(value, str) else "",
)
def test_transformers_of_detectors_adapt(name: str, parts: dict[str, int]) -> None:
    plain: Any = make(name).train()
    for module in plain.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    adapted = copy.deepcopy(plain)
    reports = adapt_parts(adapted, {part: dict(r=8) for part in parts})
    assert {part: len(report.projections) for part, report in reports.items()} == parts
    data = synthetic_batch(plain, 64, 2)
    results = []
    for model in (plain, adapted):
        batch = model.data_preprocessor(copy.deepcopy(data), training=True)
        torch.manual_seed(1)  # of queries to be denoised, and of points on masks
        losses = model(**batch, mode="loss")
        sum(losses.values()).backward()
        results.append(losses)
    # Mask2Former's attention sees what earlier masks are of, to a threshold, which rounding passes in a pixel or two
    tolerance, slack = (2e-2, 0.2) if name.startswith("mask2former") else (1e-4, 1e-4)
    for key, loss in results[0].items():
        torch.testing.assert_close(results[1][key], loss, rtol=tolerance, atol=1e-5)
    found = {n: m for n, m in adapted.named_modules() if isinstance(m, PartialLinear)}
    assert len(found) == sum(parts.values())
    for key, module in found.items():
        gradient = plain.get_parameter(f"{key}.weight").grad
        difference = module.trained.weight.grad - gradient[module.trained.channels]
        assert difference.norm() <= slack * gradient.norm()
    assert sum(plain.get_parameter(f"{key}.weight").grad.any() for key in found) > len(found) // 2  # DETR begins at 0
