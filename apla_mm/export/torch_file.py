"""Files of torch's: TorchScript, and programs of torch.export."""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from .onnx_file import first_line, quiet


def write_torchscript(module: nn.Module, images: Tensor, path: Path, metadata: Mapping[str, str]) -> None:
    """Trace a module of images and save it, with texts beside it (``_extra_files`` of ``torch.jit.load``).

    Raises:
        RuntimeError: It cannot be traced.
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module, (images,), check_trace=False)
        torch.jit.save(traced, str(path), _extra_files=dict(metadata))


def write_program(
    module: nn.Module, images: Tensor, path: Path, free: Sequence[int], metadata: Mapping[str, str]
) -> None:
    """Save a module of images as a program of ``torch.export``.

    Raises:
        RuntimeError: Its computation depends on values, or it has no free axis that is asked for.
    """
    dim: Any = torch.export.Dim
    shapes = ({axis: dim.DYNAMIC for axis in free},) if free else None
    with warnings.catch_warnings(), quiet(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            program = torch.export.export(module, (images,), dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch raises its own of many kinds
            raise RuntimeError(f"torch.export: {first_line(error)}") from error
        torch.export.save(program, str(path), extra_files=dict(metadata))


class TorchModel:
    """A TorchScript file, or a program of torch.export.

    Args:
        path: The file.
        outputs: Names of what it gives.
        program: Whether it is a program.
    """

    def __init__(self, path: Path, outputs: Sequence[str], program: bool) -> None:
        self.outputs = outputs
        if program:
            self._run: Any = torch.export.load(str(path)).module()
        else:
            self._run = torch.jit.load(str(path))

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run it on uint8 images (B, 3, H, W)."""
        with torch.no_grad():
            results = self._run(torch.from_numpy(images))
        return {name: result.numpy() for name, result in zip(self.outputs, results, strict=True)}
