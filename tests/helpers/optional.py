"""Packages that only some tests need."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from helpers import ROOT

#: package -> the file that installs it
FILES = {
    "mmcv": "requirements.txt",
    "mmseg": "requirements/base.txt",
    "mmdet": "requirements/detection.txt",
    "mmpretrain": "requirements/mmpretrain.txt",
    **dict.fromkeys(
        ["fastapi", "fastapi_offline", "prometheus_client", "python_multipart", "uvicorn"], "requirements/serve.txt"
    ),
    **dict.fromkeys(["onnx", "onnxruntime", "onnxscript", "peft", "selenium", "transformers"], "requirements/dev.txt"),
    **dict.fromkeys(["mkdocs", "nbclient"], "requirements/docs.txt"),
}


def needs(module: str) -> Any:
    """A module; the test is skipped if its package is not installed."""
    package = module.partition(".")[0]
    return pytest.importorskip(module, reason=f"{package} is not installed: {FILES[package]}")


def shipped_configs() -> list[Path]:
    """All configs of segmentation and detection, and those of classification where mmpretrain is installed."""
    kinds = ("seg", "det", *(("cls",) if find_spec("mmpretrain") else ()))
    return sorted(path for kind in kinds for path in (ROOT / "configs" / kind).glob("*.py"))
