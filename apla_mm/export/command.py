"""What ``apla-mm export`` does."""

import argparse
from pathlib import Path

from ..options.command_line import load_config
from .export import Exported, ExportError, comparing, export_model
from .int8 import quantize
from .onnx_file import OnnxModel
from .table import benchmark, markdown


def run_export(args: argparse.Namespace) -> None:
    """Export a model, print how the file compares, and, where asked for, do so in int8 and measure what all cost.

    Args:
        args: Of ``apla-mm export``.

    Raises:
        ExportError: The model cannot be exported, or the file differs by more than the tolerance.
        FileNotFoundError: A file is not there.
        ValueError: The checkpoint does not fit the config.
    """
    if (args.int8 or args.benchmark) and args.format != "onnx":
        raise ExportError(f"--int8 and --benchmark are for --format onnx, not {args.format}")
    if args.score and not args.benchmark:
        raise ExportError("--score puts a column into the table of --benchmark: give that too")
    cfg = load_config(args)
    name = Path(args.config).stem
    given = dict(images=args.images, size=args.size, name=name)
    exported = export_model(cfg, args.checkpoint, args.out, args.format, tolerance=args.tolerance, **given)
    _print(exported)
    others = {}
    if args.int8:
        small = quantize(exported.path, exported.path.with_suffix(f".int8{exported.path.suffix}"))
        others["onnxruntime, int8"] = small
        with comparing(cfg, args.checkpoint, exported, args.images) as compare:
            comparison = compare(OnnxModel(small))
        print(f"{small}: {small.stat().st_size / 2**20:.1f} MiB; from the plain model: {comparison}")
    if args.benchmark:
        print(markdown(benchmark(cfg, args.checkpoint, exported, others, args.images, args.score)))


def _print(exported: Exported) -> None:
    for note in exported.notes:
        print(note)
    height, width = exported.size
    fixed = ["batch of one image"] if "batch" not in exported.free else []
    fixed += [f"size {height} x {width}"] if "height" not in exported.free else []
    takes = f"takes images of any {' and '.join(exported.free)}" if exported.free else "takes one image"
    print(f"{exported.path}: {takes}{'; fixed: ' + ', '.join(fixed) if fixed else ''}")
    print(f"{exported.path.stat().st_size / 2**20:.1f} MiB; from the plain model: {exported.comparison}")
