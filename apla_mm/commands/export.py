"""Export a trained segmentor or detector: ``apla-mm export CONFIG CHECKPOINT --out model.onnx``.

The file takes images of bytes, uint8 (B, 3, H, W), red first, and gives results at their size. It is run and compared
with the model before it is kept.
"""

import argparse
import re
from collections.abc import Sequence

from ..config_files import config_argument
from ..export.command import run_export
from ..options.command_line import add_cfg_options
from . import command_parser, errors_in_one_line


def size(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"([1-9]\d*)[xX]([1-9]\d*)", text)
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is no height and width in pixels such as 512x768")
    return int(found[1]), int(found[2])


def difference(text: str) -> float:
    value = float(text)
    if not value >= 0:  # nor is NaN, with which every file would be kept
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("export", __doc__)
    parser.add_argument("config", type=config_argument, help="config file")
    parser.add_argument("checkpoint", help="checkpoint or delta file")
    parser.add_argument("--out", required=True, help="file to write: .onnx, .pt (torchscript) or .pt2 (torch)")
    parser.add_argument(
        "--format", choices=("onnx", "torchscript", "torch"), default="onnx", help="torch: a program of torch.export"
    )
    parser.add_argument("--images", nargs="+", default=[], metavar="FILE", help="images to compare by")
    parser.add_argument("--size", type=size, metavar="HxW", help="the only size of images (default: any, if it can be)")
    parser.add_argument(
        "--tolerance",
        type=difference,
        default=1e-4,
        help="largest difference with which the file is kept (default: 1e-4)",
    )
    parser.add_argument("--int8", action="store_true", help="also write matrix products in int8, OUT.int8.onnx")
    parser.add_argument("--benchmark", action="store_true", help="print size, time, memory and differences of all")
    parser.add_argument(
        "--score", type=int, default=0, metavar="N", help="with --benchmark: score all on the test's first N images"
    )
    add_cfg_options(parser)
    parser.set_defaults(work_dir=None, launcher="none", local_rank=0)
    return parser.parse_args(argv)


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    run_export(parse_args(argv))


if __name__ == "__main__":
    main()
