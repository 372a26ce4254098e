"""Say what files of weights hold: checkpoints, deltas, base files. Nothing in them is run."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..convert.info import describe
from ..text import said_by_tool
from . import command_parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("info", __doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="checkpoint, delta or base file")
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    failed = False
    for path in parse_args(argv).files:
        try:
            told = describe(path)
        except (OSError, ValueError) as error:
            print(f"error: {said_by_tool(error)}", file=sys.stderr)
            failed = True
        else:
            print(told)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
