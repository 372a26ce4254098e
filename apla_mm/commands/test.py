"""Test a segmentor, detector or classifier: ``apla-mm test CONFIG CHECKPOINT``."""

import argparse
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.evaluator import DumpResults

from ..config_files import config_argument
from ..options.command_line import add_common_arguments, build_runner, load_config
from ..options.launching import end_process
from ..options.predictions import PredictionsHook, check_out, leave_out_labels
from . import command_parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("test", __doc__)
    parser.add_argument("config", type=config_argument, help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument(
        "--out",
        help="where to keep predictions: a folder (segmentation), in which they lie in sub-folders as their images do, "
        "or a .pkl file (detection, classification)",
    )
    parser.add_argument(
        "--images",
        metavar="FOLDER",
        help="predict for these images, at any depth of the folder, in place of the test's data set; there are no "
        "labels, and nothing is scored; a detector's predictions are written in COCO's format too. Needs --out, --show "
        "or --show-dir",
    )
    parser.add_argument(
        "--unlabelled",
        action="store_true",
        help="the test's data set has no label maps (segmentation), or an annotation file with images and categories "
        "alone (detection): as --images, of that data set. Needs --out, --show or --show-dir",
    )
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", help="draw predictions into this folder")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds that --show waits at each image")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if (args.images or args.unlabelled) and not (args.out or args.show or args.show_dir):
        parser.error("--images and --unlabelled score nothing: give --out, --show or --show-dir for the predictions")
    return args


def enable_drawing(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.get("default_hooks", {}).get("visualization")
    if hook is None:
        raise SystemExit("--show and --show-dir need default_hooks.visualization in the config")
    hook.interval = 1  # mmseg 1.2.2 would draw every 50th prediction
    hook["enable" if cfg.get("default_scope") == "mmpretrain" else "draw"] = True
    if args.show:
        hook.show, hook.wait_time = True, args.wait_time
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def enable_tta(cfg: Config) -> None:
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        raise SystemExit("--tta needs tta_model and tta_pipeline in the config")
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main(argv: Sequence[str] | None = None) -> None:
    args = parse_args(argv)
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    scope = cfg.get("default_scope")
    in_file = scope in ("mmdet", "mmpretrain")
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.out and in_file and not args.out.endswith((".pkl", ".pickle")):
        raise SystemExit(f"--out of a config of {scope} must be a .pkl file, and is {args.out}")
    if args.out:
        check_out(args.out, folder=not in_file)
    if args.images or args.unlabelled:
        leave_out_labels(cfg, args.images, args.out)
    if args.tta:
        enable_tta(cfg)
    runner = build_runner(cfg, ("test_dataloader",))
    if args.out and not in_file:
        runner.register_hook(PredictionsHook(args.out))
    if args.out and scope == "mmpretrain":
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    if args.out and scope == "mmdet":
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()
    end_process()


if __name__ == "__main__":
    main()
