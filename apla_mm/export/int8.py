"""Matrix products of an ONNX file in int8."""

from pathlib import Path
from tempfile import TemporaryDirectory

from ..delta.atomic_file import write_atomic
from .onnx_file import quiet


def quantize(path: Path, out: Path) -> Path:
    """Write an ONNX file whose matrix products run in int8, by onnxruntime's dynamic quantisation.

    Weights are stored in int8, one scale a channel; inputs of a product are quantised as they come, so that no images
    are needed to calibrate. Convolutions, and all that is no product with weights, stay in float32.

    Args:
        path: An ONNX file.
        out: The file to write, with the metadata of the other.

    Returns:
        ``out``.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    with TemporaryDirectory() as folder, quiet():
        aside = Path(folder) / out.name
        quantize_dynamic(
            path, aside, op_types_to_quantize=["MatMul", "Gemm"], per_channel=True, weight_type=QuantType.QInt8
        )
        model = onnx.load(aside)
    del model.metadata_props[:]
    model.metadata_props.extend(onnx.load(path, load_external_data=False).metadata_props)
    write_atomic(model.SerializeToString(), out)
    return out
