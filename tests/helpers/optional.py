"""Packages that only some tests need."""

from typing import Any

import pytest

#: package -> the file that installs it
FILES = {
    "mmcv": "requirements.txt",
    "mmseg": "requirements/base.txt",
    "mmdet": "requirements/detection.txt",
    "mmpretrain": "requirements/mmpretrain.txt",
    **dict.fromkeys(["onnx", "onnxruntime", "onnxscript", "peft", "transformers"], "requirements/dev.txt"),
}


def needs(module: str) -> Any:
    """A module; the test is skipped if its package is not installed."""
    package = module.partition(".")[0]
    return pytest.importorskip(module, reason=f"{package} is not installed: {FILES[package]}")
