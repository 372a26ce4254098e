"""Nothing in a step asks for a number that the device has yet to compute: tensors here have none."""

import pytest
import torch
from helpers.nets import tiny_vit
from mmseg.models.backbones import SwinTransformer, VisionTransformer

from apla_mm.method import adapt
from apla_mm.method.memory.recompute import MODES

MODELS = {
    "timm ViT": lambda: tiny_vit(img_size=64, num_classes=0),
    "mmseg ViT": lambda: VisionTransformer(img_size=64, embed_dims=32, num_layers=2, num_heads=2),
    "mmseg Swin": lambda: SwinTransformer(
        embed_dims=24, depths=(2, 2), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1), drop_path_rate=0.0
    ),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", MODELS)
def test_step_needs_no_values(name, mode):
    model = MODELS[name]()
    adapt(model, r=4, recompute=mode)
    model.to("meta").train()
    outputs = model(torch.randn(2, 3, 64, 64, device="meta"))
    loss = sum(output.sum() for output in ([outputs] if isinstance(outputs, torch.Tensor) else outputs))
    with pytest.raises(RuntimeError, match="meta"):
        loss.item()
    loss.backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert trained and all(parameter.grad.shape == parameter.shape for parameter in trained)
