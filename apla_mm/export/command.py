"""What ``apla-mm export`` does."""

import argparse
import tempfile
from pathlib import Path

from ..options.command_line import load_config
from .benchmark import benchmark, table
from .check_images import find_images, resized_copy
from .export import Exported, ExportError, compare_file, export_model
from .int8 import quantize
from .reference import read_image


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
    cfg = load_config(args)
    name = Path(args.config).stem
    given = dict(images=args.images, size=args.size, name=name)
    exported = export_model(cfg, args.checkpoint, args.out, args.format, tolerance=args.tolerance, **given)
    _print(exported)
    files = [("onnxruntime", exported.path)]
    if args.int8:
        small = quantize(exported.path, exported.path.with_suffix(f".int8{exported.path.suffix}"))
        comparison = compare_file(cfg, args.checkpoint, small, exported, args.images)
        print(f"{small}: {small.stat().st_size / 2**20:.1f} MiB; from the plain model: {comparison}")
        files.append(("onnxruntime, int8", small))
    if args.benchmark:
        with tempfile.TemporaryDirectory() as folder:
            config = Path(folder) / "config.py"
            cfg.dump(config)
            image = find_images(cfg, args.images, Path(folder))[0][0]
            image = resized_copy(image, exported.size, Path(folder) / "image.png")
            print(table(benchmark(str(config), args.checkpoint, files, read_image(image))))


def _print(exported: Exported) -> None:
    for note in exported.notes:
        print(note)
    height, width = exported.size
    fixed = ["batch of one image"] if "batch" not in exported.free else []
    fixed += [f"size {height} x {width}"] if "height" not in exported.free else []
    takes = f"takes images of any {' and '.join(exported.free)}" if exported.free else "takes one image"
    print(f"{exported.path}: {takes}{'; fixed: ' + ', '.join(fixed) if fixed else ''}")
    print(f"{exported.path.stat().st_size / 2**20:.1f} MiB; from the plain model: {exported.comparison}")
