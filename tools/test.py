"""Test a segmentor or detector: ``python tools/test.py CONFIG CHECKPOINT``."""

import argparse

from mmengine.config import Config

from apla_mm.options.command_line import add_common_arguments, build_runner, load_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file")
    parser.add_argument("--out", help="where to keep predictions: a folder (segmentation) or a .pkl file (detection)")
    parser.add_argument("--show", action="store_true", help="show predictions in a window")
    parser.add_argument("--show-dir", help="draw predictions into this folder")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds that --show waits at each image")
    parser.add_argument("--tta", action="store_true", help="test-time augmentation")
    add_common_arguments(parser)
    return parser.parse_args()


def enable_drawing(cfg: Config, args: argparse.Namespace) -> None:
    hook = cfg.default_hooks.get("visualization")
    if hook is None:
        raise SystemExit("--show and --show-dir need default_hooks.visualization in the config")
    hook.draw, hook.interval = True, 1  # mmseg 1.2.2 would draw every 50th prediction
    if args.show:
        hook.show, hook.wait_time = True, args.wait_time
    if args.show_dir:
        cfg.visualizer.save_dir = args.show_dir


def enable_tta(cfg: Config) -> None:
    if "tta_model" not in cfg or "tta_pipeline" not in cfg:
        raise SystemExit("--tta needs tta_model and tta_pipeline in the config")
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def main() -> None:
    args = parse_args()
    cfg = load_config(args)
    cfg.load_from = args.checkpoint
    if args.show or args.show_dir:
        enable_drawing(cfg, args)
    if args.tta:
        enable_tta(cfg)
    detection = cfg.get("default_scope") == "mmdet"
    if args.out and not detection:
        cfg.test_evaluator.update(output_dir=args.out, keep_results=True)
    if args.out and detection and not args.out.endswith((".pkl", ".pickle")):
        raise SystemExit(f"--out of a detection config must be a .pkl file, and is {args.out}")
    runner = build_runner(cfg, ("test_dataloader",))
    if args.out and detection:
        from mmdet.evaluation import DumpDetResults

        runner.test_evaluator.metrics.append(DumpDetResults(out_file_path=args.out))
    runner.test()


if __name__ == "__main__":
    main()
