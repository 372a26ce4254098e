"""Say what files of weights hold: checkpoints, deltas, base files. Nothing in them is run."""

import argparse
import sys
from pathlib import Path

from apla_mm.convert.files import said_by_tool
from apla_mm.convert.info import describe


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="checkpoint, delta or base file")
    return parser.parse_args()


def main() -> None:
    failed = False
    for path in parse_args().files:
        try:
            print(describe(path))
        except (OSError, ValueError) as error:
            print(f"error: {said_by_tool(error)}", file=sys.stderr)
            failed = True
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
