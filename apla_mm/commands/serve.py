"""Serve a folder of deltas by HTTP, all on one base in memory: ``apla-mm serve FOLDER``.

Each file NAME.delta.safetensors there is a task, POST /v1/predict/NAME, also one that comes later. A page to try them
is at the address itself, and all of the API at /docs. docs/serving.md has more.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from ..options.launching import leave
from ..serve.requests.limits import Limits
from ..serve.server import Settings, serve
from . import command_parser, errors_in_one_line


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("serve", __doc__)
    limits = Limits()
    parser.add_argument("folder", type=Path, help="folder of deltas")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen at (default: %(default)s, this machine)")
    parser.add_argument("--port", type=port, default=8000, help="0 for any that is free (default: %(default)s)")
    parser.add_argument("--base", type=Path, metavar="FILE", help="base file (default: the first delta's)")
    parser.add_argument("--device", help="such as cuda:0 (default: a GPU where there is one)")
    add = parser.add_argument_group("limits").add_argument
    add("--max-mib", type=positive, default=limits.max_bytes / 2**20, help="of an upload (default: %(default)g)")
    add("--max-pixels", type=natural, default=limits.max_pixels, help="of an image, and a batch (default: %(default)s)")
    add("--max-requests", type=natural, default=limits.max_requests, help="at once (default: %(default)s)")
    add("--max-batch", type=natural, default=limits.max_batch, help="images of a batch (default: %(default)s)")
    add("--max-wait-ms", type=positive, default=1e3 * limits.max_wait, help="for more images (default: %(default)g)")
    add("--upload-seconds", type=positive, default=limits.upload_seconds, help="for a body (default: %(default)g)")
    add("--answer-seconds", type=positive, default=limits.answer_seconds, help="for a result (default: %(default)g)")
    add("--stop-seconds", type=positive, default=30.0, help="for requests in flight at the end (default: %(default)g)")
    parser.add_argument("--poll", type=positive, default=2.0, help="seconds between looks at the folder (default: 2)")
    parser.add_argument("--separate", action="store_true", help="a base for each task, to measure what sharing saves")
    return parser.parse_args(argv)


def port(text: str) -> int:
    value = int(text)
    if not 0 <= value < 2**16:  # the system would take the rest of a larger one
        raise argparse.ArgumentTypeError(f"{text} must be from 0 to 65535")
    return value


def positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} must be above 0")
    return value


def natural(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def settings_of(args: argparse.Namespace) -> Settings:
    limits = Limits(
        max_bytes=round(args.max_mib * 2**20),
        max_pixels=args.max_pixels,
        upload_seconds=args.upload_seconds,
        answer_seconds=args.answer_seconds,
        max_requests=args.max_requests,
        max_batch=args.max_batch,
        max_wait=args.max_wait_ms / 1e3,
    )
    shared = {name: getattr(args, name) for name in ("host", "port", "base", "device", "poll", "separate")}
    return Settings(args.folder, stop_seconds=args.stop_seconds, limits=limits, **shared)


@errors_in_one_line(OSError, ValueError)
def main(argv: Sequence[str] | None = None) -> None:
    if not serve(settings_of(parse_args(argv))):
        leave()


if __name__ == "__main__":
    main()
