"""mmcv's operators that ONNX has under other names, and one of torch's that its exporter gets wrong."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from mmcv.ops import nms as mmcv_nms
from mmcv.ops import roi_align as mmcv_roi_align
from torch import Tensor


class _NMS(torch.autograd.Function):
    """mmcv's ``nms``, and ONNX's NonMaxSuppression in a file."""

    @staticmethod
    def forward(ctx: Any, boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
        kept: Tensor = mmcv_nms(boxes, scores, iou)[1]
        return kept

    @staticmethod
    def symbolic(g: Any, boxes: Any, scores: Any, iou: float) -> Any:
        def constant(value: Any, dtype: torch.dtype) -> Any:
            return g.op("Constant", value_t=torch.tensor(value, dtype=dtype))

        front = constant([0], torch.int64)
        selected = g.op(
            "NonMaxSuppression",
            g.op("Unsqueeze", boxes, front),
            g.op("Unsqueeze", scores, constant([0, 1], torch.int64)),
            constant([torch.iinfo(torch.int32).max], torch.int64),
            constant([iou], torch.float32),
        )
        # of batch, class and box the box
        return g.op("Gather", selected, constant(2, torch.int64), axis_i=1)


class _RoIAlign(torch.autograd.Function):
    """mmcv's ``roi_align``, and ONNX's RoiAlign in a file."""

    @staticmethod
    def forward(
        ctx: Any, maps: Tensor, regions: Tensor, height: int, width: int, scale: float, ratio: int, aligned: bool
    ) -> Tensor:
        values: Tensor = mmcv_roi_align(maps, regions, (height, width), scale, ratio, "avg", aligned)
        return values

    @staticmethod
    def symbolic(
        g: Any, maps: Any, regions: Any, height: int, width: int, scale: float, ratio: int, aligned: bool
    ) -> Any:
        def column(*which: int) -> Any:
            index = torch.tensor(which if len(which) > 1 else which[0], dtype=torch.int64)
            return g.op("Gather", regions, g.op("Constant", value_t=index), axis_i=1)

        return g.op(
            "RoiAlign",
            maps,
            column(1, 2, 3, 4),
            g.op("Cast", column(0), to_i=torch.onnx.TensorProtoDataType.INT64),
            coordinate_transformation_mode_s="half_pixel" if aligned else "output_half_pixel",
            mode_s="avg",
            output_height_i=height,
            output_width_i=width,
            sampling_ratio_i=ratio,
            spatial_scale_f=scale,
        )


def nms(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Indices of the boxes (N, 4) that no better one overlaps by more than ``iou``, the best first."""
    kept: Tensor = _NMS.apply(boxes, scores, iou)
    return kept


def roi_align(maps: Tensor, regions: Tensor, layer: Any) -> Tensor:
    """Values (N, C, height, width) of regions of maps.

    Args:
        maps: (B, C, H, W).
        regions: (N, 5): the image's index in the batch, x1, y1, x2, y2.
        layer: mmcv's ``RoIAlign``, whose settings are taken.
    """
    height, width = layer.output_size
    values: Tensor = _RoIAlign.apply(
        maps, regions, height, width, layer.spatial_scale, layer.sampling_ratio, layer.aligned
    )
    return values


def _linspace(g: Any, start: Any, end: Any, steps: Any, dtype: Any, *_: Any) -> Any:
    """``torch.linspace`` in floating point, of a single step too: torch's own divides by steps - 1."""

    def number(value: int) -> Any:
        return g.op("Constant", value_t=torch.tensor(value, dtype=torch.int64))

    def floating(value: Any) -> Any:
        return g.op("Cast", value, to_i=torch.onnx.TensorProtoDataType.FLOAT)

    first = floating(start)
    steps = g.op("Cast", steps, to_i=torch.onnx.TensorProtoDataType.INT64)
    at = floating(g.op("Range", number(0), steps, number(1)))
    gaps = floating(g.op("Max", g.op("Sub", steps, number(1)), number(1)))
    return g.op("Add", g.op("Mul", at, g.op("Div", g.op("Sub", floating(end), first), gaps)), first)


@contextlib.contextmanager
def exact_linspace(opset: int) -> Iterator[None]:
    """While it is open, torch's tracing exporter writes ``linspace`` so that a single step is exact.

    mmdet's deformable attention makes its points by it, one where a map is a single pixel high or wide.
    """
    torch.onnx.register_custom_op_symbolic("aten::linspace", _linspace, opset)
    try:
        yield
    finally:
        torch.onnx.unregister_custom_op_symbolic("aten::linspace", opset)
