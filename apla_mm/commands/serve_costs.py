"""What apla-mm serve costs: requests a second and latency of one task, of two in turn, and of two models of their own.

apla-mm serve-costs FOLDER --image photo.jpg
Servers of the folder's deltas are started on this machine, asked over its loopback for a bounded time, and stopped.
Memory is that of the server's process with so many tasks, made of the two in turn. Malformed requests must be answered
by 4xx alone: with any other the command ends with 1.
"""

import argparse
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from ..serve.load_test import run_load_test
from . import command_parser, errors_in_one_line, file_to_write


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("serve-costs", __doc__)
    parser.add_argument("folder", type=Path, help="folder of deltas, as of apla-mm serve")
    parser.add_argument("--tasks", nargs=2, default=(), metavar="NAME", help="(default: the first two)")
    parser.add_argument("--image", type=Path, help="what is uploaded (default: 640 x 480 pixels of noise, as a JPEG)")
    parser.add_argument("--clients", nargs="+", type=int, default=[1, 4], help="that ask at once (default: 1 4)")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each row (default: 10)")
    parser.add_argument("--counts", nargs="+", type=int, default=[1, 2, 8], help="of tasks in memory (default: 1 2 8)")
    parser.add_argument("--malformed", type=int, default=1000, help="requests (default: 1000)")
    parser.add_argument("--json", type=file_to_write, metavar="FILE", help="write the figures here")
    args = parser.parse_args(argv)
    if min(*args.clients, *args.counts, args.malformed) < 1 or not 0 < args.seconds <= 600:
        parser.error("--clients, --counts and --malformed must be at least 1, and --seconds above 0 and at most 600")
    return args


def noise() -> bytes:
    file = io.BytesIO()
    colours = np.random.default_rng(0).integers(0, 255, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(colours).resize((640, 480)).save(file, "JPEG")
    return file.getvalue()


@errors_in_one_line(OSError, ValueError, RuntimeError)
def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    image = args.image.read_bytes() if args.image else noise()
    told = run_load_test(args.folder, args.tasks, image, args.clients, args.seconds, args.counts, args.malformed)
    if args.json:
        args.json.write_text(json.dumps(told, indent=1) + "\n")
    if wrong := {status: count for status, count in told["malformed"].items() if not 400 <= status < 500}:
        raise RuntimeError(f"malformed requests were answered by {wrong}, and not by 4xx")


if __name__ == "__main__":
    main()
