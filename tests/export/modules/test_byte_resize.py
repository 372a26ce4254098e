from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from helpers.optional import needs
from torch import Tensor, nn

from apla_mm.export.modules.byte_resize import resize_bytes
from apla_mm.export.onnx_file import OnnxModel, write_onnx


@pytest.mark.parametrize(
    ("size", "new"), [((37, 50), (64, 87)), ((80, 111), (64, 89)), ((64, 48), (32, 24)), ((9, 200), (50, 7))]
)
def test_it_is_opencvs_to_the_bit(size: tuple[int, int], new: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = cv2.resize(image, new[::-1], interpolation=cv2.INTER_LINEAR)
    got = resize_bytes(torch.from_numpy(image).permute(2, 0, 1)[None], *new)
    assert np.array_equal(got[0].permute(1, 2, 0).numpy(), expected)


class _Smaller(nn.Module):
    """Resizes by numbers that an exporter sees as tensors."""

    def forward(self, images: Tensor) -> Tensor:
        return resize_bytes(images, images.shape[-2] // 3, images.shape[-1] * 7 // 40)


@pytest.mark.parametrize("free", [(), (2, 3)])
def test_an_exported_one_is_too(free: tuple[int, ...], tmp_path: Path) -> None:
    """Exporters make float32 of float64 scalars, which moves a weight by one here and there."""
    for package in ("onnx", "onnxruntime"):
        needs(package)
    image = np.random.default_rng(0).integers(0, 256, (128, 640, 3), dtype=np.uint8)
    images = torch.from_numpy(image).permute(2, 0, 1)[None]
    write_onnx(_Smaller(), images, tmp_path / "smaller.onnx", ["resized"], free, {})
    got = OnnxModel(tmp_path / "smaller.onnx")(images.numpy())["resized"]
    expected = cv2.resize(image, (112, 42), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(got[0].transpose(1, 2, 0), expected)
