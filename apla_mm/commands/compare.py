"""Compare tuning methods on your data, each at its own best learning rate from equally many trials.

apla-mm compare CONFIG --methods head bitfit lora:r=8 apla:r=16 apla:r=64 full --seeds 3

Trials are runs of apla-mm train, each in a process of its own, here or as Slurm jobs. Started again with the same
--work-dir it goes on where it was; methods, seeds, fractions and trials may be added. Test data are used once, by the
final runs. Writes report.md and report.html.
"""

import argparse
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.config import Config
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..compare.comparison import Comparison
from ..compare.report import write_report
from ..compare.trials.launch import Launcher, visible_gpus
from ..compare.trials.study import HEAD, Study
from ..config_files import config_argument
from ..options.command_line import add_common_arguments, load_config
from ..options.launching import end_process
from . import command_parser


def parse_args(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = command_parser("compare", __doc__)
    parser.add_argument("config", type=config_argument, help="config file")
    parser.add_argument("--methods", nargs="+", required=True, metavar="METHOD", help="as method=... of a config takes")
    parser.add_argument("--seeds", type=int, default=3, help="final runs of each method (default: 3)")
    parser.add_argument("--fractions", type=float, nargs="+", default=[1.0], help="of the training set (default: 1)")
    parser.add_argument("--trials", type=int, default=5, help="learning rates tried for each (default: 5)")
    parser.add_argument(
        "--rates",
        nargs="+",
        default=[],
        metavar="METHOD=RATE,RATE,...",
        help="learning rates that a method's search begins with, as in full=3e-6,1e-5,3e-5; one alone is not searched",
    )
    parser.add_argument("--head-lr", type=float, help="of the heads, for all methods (default: chosen by trials)")
    parser.add_argument(
        "--held-out", type=float, default=0.2, help="share of training images for trials (default: 0.2)"
    )
    parser.add_argument("--metric", help="what runs are scored by (default: that of save_best in the config)")
    parser.add_argument("--amp", action="store_true", help="mixed precision, as of apla-mm train")
    parser.add_argument("--jobs", type=int, default=1, help="trials at once (default: 1)")
    parser.add_argument("--on", choices=("local", "slurm"), default="local", help="where trials run")
    parser.add_argument("--slurm", nargs="+", default=[], metavar="KEY=VALUE", help="as submitit takes: partition=gpu")
    parser.add_argument("--retry-failed", action="store_true", help="run again what ended in an error")
    parser.add_argument("--report-only", action="store_true", help="write the report of what is there")
    add_common_arguments(parser, "work_dirs/compare_CONFIG'S NAME")
    args = parser.parse_args(argv)
    if args.launcher != "none":
        parser.error("trials are single processes: leave --launcher out; --on slurm runs each as a job")
    if args.seeds < 1 or args.jobs < 1 or args.trials < 2:
        parser.error("--seeds and --jobs must be 1 or more, --trials 2 or more")
    if not 0 < args.held_out < 1:
        parser.error("--held-out must be between 0 and 1")
    if not all(0 < fraction <= 1 for fraction in args.fractions):
        parser.error("--fractions must be above 0 and at most 1")
    if args.head_lr is not None and not 0 < args.head_lr < math.inf:
        parser.error("--head-lr must be above 0")
    if len(set(args.methods)) != len(args.methods):
        parser.error("--methods names one twice")
    return args


def starts_of(texts: list[str]) -> dict[str, tuple[float, ...]]:
    starts = {}
    for text in texts:
        method, equals, rates = text.rpartition("=")
        try:
            starts[method] = tuple(float(rate) for rate in rates.split(","))
            if not all(0 < rate < math.inf for rate in starts[method]):
                raise ValueError
        except ValueError:
            equals = ""
        if not equals:
            raise SystemExit(f"--rates {text}: write METHOD=RATE,RATE,RATE, above 0, as in full=3e-6,1e-5,3e-5")
    return starts


def load(args: argparse.Namespace, options: Mapping[str, Any]) -> Config:
    """The config as apla-mm train reads it, with further options."""
    given = argparse.Namespace(**{**vars(args), "cfg_options": {**args.cfg_options, **options}})
    given.work_dir = None
    return load_config(given)


def main(argv: Sequence[str] | None = None) -> None:
    os.environ.setdefault("TQDM_DISABLE", "1")
    args = parse_args(argv)
    cfg = load(args, {})
    metric = args.metric or cfg.get("default_hooks", {}).get("checkpoint", {}).get("save_best")
    if not isinstance(metric, str) or metric == "auto":
        raise SystemExit("what are runs scored by? The config's save_best does not say: give --metric, such as mIoU")
    if "max_iters" not in (cfg.get("train_cfg") or {}):
        raise SystemExit("the config trains by epochs; a comparison needs max_iters: use an iteration-based schedule")
    if unknown := starts_of(args.rates).keys() - {HEAD, *args.methods}:
        raise SystemExit(f"--rates names {', '.join(sorted(unknown))}, which --methods does not")
    for method in args.methods:
        load(args, dict(method=method))  # refused now, not hours later
    study = Study(
        tuple(args.methods), args.seeds, tuple(args.fractions), args.trials, starts_of(args.rates), args.head_lr
    )
    folder = Path(args.work_dir or Path("work_dirs") / f"compare_{Path(args.config).stem}").absolute()
    title = f"{Path(args.config).stem}: {', '.join(args.methods)}"
    train_args = ["--amp"] if args.amp else []
    try:
        comparison = Comparison(folder, study, lambda options: load(args, options), metric, args.held_out, train_args)
        if args.retry_failed:
            comparison.forget_failures()
        if not args.report_only:
            run(comparison, args, title)
        write_report(comparison, title)
    except (ValueError, RuntimeError) as error:
        raise SystemExit(f"{error}") from error
    print((folder / "report.md").read_text())
    print(f"{folder / 'report.html'}")
    end_process()


def slurm_of(args: argparse.Namespace) -> dict[str, str]:
    pairs = [text.partition("=") for text in args.slurm]
    if wrong := ["".join(pair) for pair in pairs if not all(pair)]:
        raise SystemExit(f"--slurm {wrong[0]}: write KEY=VALUE, as in partition=gpu")
    return {key: value for key, _, value in pairs}


def run(comparison: Comparison, args: argparse.Namespace, title: str) -> None:
    launcher = Launcher(
        comparison.folder / "jobs", args.on, visible_gpus() if args.on == "local" else (), slurm_of(args)
    )
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, speed_estimate_period=24 * 3600) as progress:
        done = len(comparison.scores())
        task = progress.add_task("trials", total=max(done, comparison.study.count()), completed=done)

        def tell(line: str) -> None:
            progress.console.print(line, highlight=False, soft_wrap=True)
            progress.update(task, completed=len(comparison.scores()))
            write_report(comparison, title)

        try:
            comparison.run(launcher.submit, args.jobs, tell)
        except KeyboardInterrupt:
            launcher.cancel()
            print("interrupted; the same command goes on from here", file=sys.stderr)
            raise SystemExit(128 + 2) from None


if __name__ == "__main__":
    main()
