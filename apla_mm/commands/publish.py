"""Write a checkpoint or a delta for others: without what only training needs, named by date and content.

apla-mm publish work_dirs/seg/iter_160000.pth setr-pup_vit-b16_ade20k
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..convert.publish import publish
from ..delta import load_delta
from ..delta.weights_file import Kind, kind_of
from . import command_parser, errors_in_one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("publish", __doc__)
    parser.add_argument("file", type=Path, help="full checkpoint, delta or safetensors file")
    parser.add_argument("out", type=Path, help="becomes OUT_<yyyymmdd>-<sha256[:8]>.pth or .safetensors")
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinity in the weights")
    parser.add_argument("--force", action="store_true", help="overwrite a file of that name")
    return parser.parse_args(argv)


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    path = publish(args.file, args.out, force=args.force, allow_nonfinite=args.allow_nonfinite)
    print(path)
    if kind_of(path) is Kind.DELTA and (name := load_delta(path, allow_nonfinite=True).header.extra.get("base_file")):
        print(f"It needs its base: publish the file {name} with it.")


if __name__ == "__main__":
    main()
