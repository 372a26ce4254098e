"""ONNX files: written by torch's tracing exporter, run by onnxruntime."""

import contextlib
import io
import json
import logging
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..internals import without_graphs
from .modules.onnx_ops import exact_linspace

#: of ONNX's operators: NonMaxSuppression, RoiAlign with half pixels, GridSample and Resize as torch has them
OPSET = 20
#: names of the axes of the images that may be of any size
AXES = {0: "batch", 2: "height", 3: "width"}


def write_onnx(
    module: nn.Module,
    images: Tensor,
    path: Path,
    outputs: Sequence[str],
    free: Sequence[int],
    metadata: Mapping[str, str],
) -> None:
    """Export a module of images.

    torch's newer exporter takes minutes where sizes are free and refuses mmdet's and mmseg's deformable attention,
    whose shapes lie in tensors: models are traced instead.

    Args:
        module: It takes images, in evaluation.
        images: uint8 (B, 3, H, W), by which it is traced.
        path: The file to write.
        outputs: Names of what the module gives.
        free: Axes of the images that may be of any size: some of 0, 2, 3.
        metadata: Texts that are kept in the file.

    Raises:
        RuntimeError: An operator of the model has no counterpart in ONNX; names it.
    """
    import onnx

    axes: dict[str, dict[int, str]] = {"images": {axis: AXES[axis] for axis in free}}
    if 0 in free:
        axes |= {name: {0: AXES[0]} for name in outputs}
    told = io.StringIO()  # the whole graph, where something fails
    with warnings.catch_warnings(), quiet(), contextlib.redirect_stdout(told), contextlib.redirect_stderr(told):
        warnings.simplefilter("ignore")
        try:
            with torch.no_grad(), exact_linspace(OPSET), without_graphs():
                torch.onnx.export(
                    module,
                    (images,),
                    str(path),
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=["images"],
                    output_names=list(outputs),
                    dynamic_axes=axes if free else None,
                )
        except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
            raise RuntimeError(first_line(error)) from error
    model = onnx.load(path)
    for key, value in metadata.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    onnx.save(model, path)


@contextlib.contextmanager
def quiet() -> Any:
    """Without the log lines of exporters and onnxruntime's tools, below errors."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(before)


def first_line(error: BaseException) -> str:
    """What an exporter's error says, without its graph."""
    return str(error).strip().split("\n")[0][:500]


class OnnxModel:
    """An ONNX file, run by onnxruntime on the CPU.

    Args:
        path: The file.
        threads: Of the CPU; None for onnxruntime's own choice.
    """

    def __init__(self, path: Path, threads: int | None = None) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4  # errors are raised, not printed too
        if threads is not None:
            options.intra_op_num_threads = threads
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.outputs = [output.name for output in self._session.get_outputs()]

    def __call__(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """Run it on uint8 images (B, 3, H, W)."""
        return dict(zip(self.outputs, self._session.run(None, {"images": images}), strict=True))


def read_metadata(path: Path) -> dict[str, Any]:
    """The texts that :func:`write_onnx` kept, decoded where they are JSON."""
    import onnx

    found: dict[str, Any] = {}
    for entry in onnx.load(path, load_external_data=False).metadata_props:
        try:
            found[entry.key] = json.loads(entry.value)
        except ValueError:
            found[entry.key] = entry.value
    return found
