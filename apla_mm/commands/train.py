"""Train a segmentor, detector or classifier: ``apla-mm train CONFIG``."""

import argparse
from collections.abc import Sequence

from mmengine.runner import find_latest_checkpoint

from ..config_files import config_argument
from ..options.command_line import add_common_arguments, build_runner, load_config
from ..options.launching import end_process
from ..options.mixed_precision import enable_mixed_precision
from . import command_parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("train", __doc__)
    parser.add_argument("config", type=config_argument, help="config file")
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        metavar="CHECKPOINT",
        help="go on from a checkpoint; without a path, from the latest in the work dir",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision: bfloat16 where the device has it")
    parser.add_argument("--auto-scale-lr", action="store_true", help="scale the learning rate with the batch size")
    add_common_arguments(parser)
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args)
    if args.amp:
        try:
            enable_mixed_precision(cfg)
        except ValueError as error:
            raise SystemExit(f"--amp: {error}") from error
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise SystemExit("--auto-scale-lr needs auto_scale_lr=dict(base_batch_size=...) in the config")
        cfg.auto_scale_lr.enable = True
    if args.resume == "auto":
        cfg.resume = find_latest_checkpoint(cfg.work_dir) is not None
        if cfg.resume:
            cfg.load_from = None  # else it is where a run begins
    elif args.resume is not None:
        cfg.resume, cfg.load_from = True, args.resume
    build_runner(cfg, ("train_dataloader", "val_dataloader")).train()
    end_process()


if __name__ == "__main__":
    main()
