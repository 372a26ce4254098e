"""Files in int8 are whole or not there."""

import os
from pathlib import Path

import pytest
import torch
from helpers.optional import needs
from torch import Tensor, nn

from apla_mm.export.int8 import quantize
from apla_mm.export.onnx_file import OnnxModel, read_metadata, write_onnx

for package in ("onnx", "onnxruntime"):
    needs(package)


class _Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 16)

    def forward(self, images: Tensor) -> Tensor:
        return self.linear(images.float())


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    images = torch.zeros(1, 3, 8, 16, dtype=torch.uint8)
    write_onnx(_Product(), images, tmp_path / "model.onnx", ["values"], (), dict(classes='["left"]'))
    return tmp_path / "model.onnx"


def test_a_file_that_is_there_is_exchanged_as_a_whole(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.int8.onnx"
    out.write_bytes(b"before")
    os.link(out, tmp_path / "link")  # to what is written to, if that is done in place
    assert quantize(plain, out) == out
    assert (tmp_path / "link").read_bytes() == b"before"
    assert read_metadata(out) == dict(classes=["left"])
    images = torch.randint(0, 256, (1, 3, 8, 16), dtype=torch.uint8).numpy()
    exact, near = OnnxModel(plain)(images)["values"], OnnxModel(out)(images)["values"]
    assert 0 < abs(exact - near).max() < 0.05 * abs(exact).max()
    assert {path.name for path in tmp_path.iterdir()} == {plain.name, out.name, "link"}


def test_a_failure_leaves_what_was_there(plain: Path, tmp_path: Path) -> None:
    out = tmp_path / "model.int8.onnx"
    out.write_bytes(b"before")
    plain.write_bytes(plain.read_bytes()[:-100])
    with pytest.raises(Exception, match="pars|Protobuf|message"):
        quantize(plain, out)
    assert out.read_bytes() == b"before"
    assert {path.name for path in tmp_path.iterdir()} == {plain.name, out.name}
