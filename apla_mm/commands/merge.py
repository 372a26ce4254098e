"""Make a full checkpoint of a delta and its base, as training would have saved it.

apla-mm merge seg.safetensors seg.pth
The base file is looked for beside the delta, in bases/ there and above, and in the folders of APLA_MM_BASES.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..convert.files import check_output, check_suffix, write_checkpoint
from ..convert.full_checkpoint import merged_checkpoint
from ..delta import load_delta
from ..delta.base_file import find_base
from ..delta.weights_file import read_weights
from . import command_parser, errors_in_one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("merge", __doc__)
    parser.add_argument("delta", type=Path, help="delta: .safetensors")
    parser.add_argument("out", type=Path, help="checkpoint to write: .pth, or .safetensors for the tensors alone")
    parser.add_argument("--base", type=Path, help="weights before training (default: the base file it names)")
    parser.add_argument("--base-prefix", default="", help="what the delta's names have before the names in --base")
    parser.add_argument("--no-check", action="store_true", help="take the base even if it is not the delta's")
    parser.add_argument("--allow-nonfinite", action="store_true", help="take NaN and infinity in the weights")
    parser.add_argument("--force", action="store_true", help="overwrite OUT")
    return parser.parse_args(argv)


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    check_suffix(args.out)
    check_output(args.out, args.force, args.delta, args.base)
    delta = load_delta(args.delta, allow_nonfinite=args.allow_nonfinite)
    base = args.base
    if base is None:
        if "base_file" not in delta.header.extra:
            raise ValueError(f"delta '{args.delta}' names no base file: name its base by --base")
        base = find_base(delta.header.extra["base_file"], args.delta)
    tensors = {args.base_prefix + name: tensor for name, tensor in read_weights(base).state.items()}
    state, meta = merged_checkpoint(delta, tensors, check_base=not args.no_check)
    write_checkpoint(args.out, state, meta)
    print(f"{args.out}: {len(state)} tensors, base {base}")


if __name__ == "__main__":
    main()
