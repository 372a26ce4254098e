"""Make a delta of a full checkpoint and its base.

apla-mm extract work_dirs/seg/iter_160000.pth vitb.safetensors seg.safetensors \
    --base-prefix backbone.vit.
What of the base did not train is written into a base file, bases/base-*.safetensors beside the delta: the delta needs
it, and all deltas of the same base share it.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..convert.files import check_output
from ..convert.full_checkpoint import delta_of
from ..delta import DeltaError, save_delta
from ..delta.base_file import ENVIRONMENT, find_base, save_base
from ..delta.weights_file import read_weights
from ..loading.checkpoint_reader import mmengines_types
from . import command_parser, errors_in_one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("extract", __doc__)
    parser.add_argument("checkpoint", type=Path, help="full checkpoint, after training: .pth or .safetensors")
    parser.add_argument("base", type=Path, help="weights before training: base file, checkpoint or pretrained weights")
    parser.add_argument("out", type=Path, help="delta to write: .safetensors")
    parser.add_argument("--base-prefix", default="", help="what the checkpoint's names have before the base's")
    parser.add_argument("--channels", type=Path, metavar="FILE.json", help="what trained (default: what differs)")
    parser.add_argument("--metrics", type=Path, metavar="FILE.json", help="scores to write into the delta")
    parser.add_argument("--bases", type=Path, metavar="FOLDER", help="for the base file (default: bases beside OUT)")
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinity in the weights")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    args = parser.parse_args(argv)
    if args.out.suffix != ".safetensors":
        parser.error("OUT must end in .safetensors")
    return args


def read_metrics(path: Path) -> dict[str, Any]:
    wanted = 'it must hold one object, of scores by name, such as {"mIoU": 47.5}'
    try:
        metrics = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"--metrics '{path}' is not JSON ({error}): {wanted}") from error
    if not isinstance(metrics, dict):
        raise ValueError(f"--metrics '{path}' holds a value of type {type(metrics).__name__}: {wanted}")
    return metrics


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_output(args.out, args.force, args.checkpoint, args.base)
    delta, base = delta_of(
        read_weights(args.checkpoint, known=mmengines_types()),
        read_weights(args.base).state,
        base_prefix=args.base_prefix,
        channels=args.channels,
        metrics=read_metrics(args.metrics) if args.metrics else None,
    )
    delta.check(allow_nonfinite=args.allow_nonfinite)  # before its base is written
    path = save_base(base, args.bases or args.out.parent / "bases")
    save_delta(delta, args.out, allow_nonfinite=args.allow_nonfinite)
    print(
        f"{args.out}: channels of {len(delta.channels)} projections, {len(delta.tensors)} whole tensors, "
        f"{delta.nbytes / 2**20:.2f} MiB; base in {path}"
    )
    try:
        find_base(path.name, args.out)
    except DeltaError:
        print(f"The base file is found there once the environment variable {ENVIRONMENT} names {path.parent}.")


if __name__ == "__main__":
    main()
