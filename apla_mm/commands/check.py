"""See whether a config will train here: ``apla-mm check CONFIG``.

Settings, folders, data, weights and what trains are looked at as training looks at them; then a few steps and a batch
of validation are run. Nothing is left behind. It ends with what the whole run will take, or with the list of what to
mend, and then with 1.
"""

import logging
import math
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from mmengine.config import Config
from mmengine.device import get_device

from ..config_files import config_argument
from ..data.folders import check_folders
from ..options.agreement.check import find_problems
from ..options.command_line import add_common_arguments, build_runner, check_work_dir, load_config
from ..options.mixed_precision import enable_mixed_precision
from ..runs.hooks.rehearsal_hook import Costs, RehearsalHook, RehearsedError
from ..runs.peak_memory import device_memory, peak_memory
from ..text import format_bytes
from . import command_parser

T = TypeVar("T")
USED = ("train_dataloader", "val_dataloader")


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("check", __doc__)
    parser.add_argument("config", type=config_argument, help="config file")
    parser.add_argument("--amp", action="store_true", help="mixed precision, as of train")
    parser.add_argument("--steps", type=int, default=2, help="steps that are measured, after one more (default: 2)")
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.launcher != "none":
        parser.error("a single process is looked at: leave --launcher out")
    if args.steps < 1:
        parser.error("--steps must be 1 or more")
    problems: list[str] = []

    def load() -> Config:
        cfg = load_config(args)
        if args.amp:
            enable_mixed_precision(cfg)
        return cfg

    cfg = _try(problems, "config", load)
    if cfg is not None:
        for problem in _try(problems, "settings", lambda: find_problems(cfg, USED)) or ():
            if problem.error:
                problems.append(f"settings: {problem}")
            else:
                print(f"settings   (unusual) {problem}")
        for loader in USED:
            _try(problems, "data", partial(check_folders, cfg, [loader]))
        _try(problems, "disk", partial(check_work_dir, cfg.work_dir))
        if not problems:
            costs = _try(problems, "run", lambda: _rehearse(cfg, args.steps))
            if costs is not None:
                _tell(cfg, costs, problems)
    if problems:
        print(f"\nNot ready: {len(problems)} to mend")
        for line in problems:
            print(f"  - {line}")
        raise SystemExit(1)
    print("\nReady.")


def _try(problems: list[str], what: str, look: Callable[[], T]) -> T | None:
    """What a look gives; None if it ends in an error, which becomes a problem."""
    try:
        return look()
    except torch.OutOfMemoryError as error:
        problems.append(
            f"memory: a step does not fit the device ({str(error).splitlines()[0]}): give, by --cfg-options, a smaller "
            "train_dataloader.batch_size, method=apla:r=64,recompute=block or default_hooks.lean_heads.recompute=True; "
            "or --amp"
        )
    except Exception as error:  # whatever a run may fail by
        problems.append(f"{what}: {error}" if isinstance(error, ValueError | OSError) else f"{what}: {error!r}")
    return None


def _rehearse(cfg: Config, steps: int) -> Costs:
    """Run a few steps in a folder that is gone afterwards."""
    costs = Costs()
    cfg = cfg.copy()
    cfg.log_level = "ERROR"
    with tempfile.TemporaryDirectory() as folder:
        cfg.work_dir = folder
        cfg.visualizer = dict(type="Visualizer", name=Path(folder).name, vis_backends=[])
        runner = build_runner(cfg, USED)
        runner.register_hook(RehearsalHook(costs, steps))
        try:
            runner.train()
        except RehearsedError:
            pass
        finally:
            logging.shutdown()
    return costs


def _tell(cfg: Config, costs: Costs, problems: list[str]) -> None:
    total, device = device_memory()
    print(f"trains     {costs.trains:,} of {costs.values:,} values")
    print(f"memory     {format_bytes(peak_memory())} at the peak, of {format_bytes(total)} ({device})")
    measured = f"{costs.step:.3g} s" if math.isfinite(costs.step) else "not measured, as there is one alone"
    print(f"step       {measured}, {costs.steps:,} of them")
    if costs.image is not None:
        print(f"validation {costs.image:.3g} s an image, {costs.images:,} images, {costs.validations:,} times")
    if math.isfinite(costs.seconds):
        print(f"the run    {_duration(costs.seconds)}")
    need = (costs.checkpoints + 1) * costs.checkpoint  # one more while it is written
    folder = Path(cfg.work_dir).absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    print(f"disk       {format_bytes(need)} for checkpoints, {format_bytes(free)} free in {folder}")
    if need > free:
        problems.append(
            f"disk: checkpoints take {format_bytes(need)} and {folder} has {format_bytes(free)} free: make room, give "
            "another --work-dir, or default_hooks.checkpoint.max_keep_ckpts=1"
        )
    names = ("torch", "timm", "mmengine", "mmcv", "mmseg", "mmdet")
    versions = ", ".join(f"{name} {sys.modules[name].__version__}" for name in names if name in sys.modules)
    print(f"versions   Python {sys.version.split()[0]}, {versions}; {get_device()}")


def _duration(seconds: float) -> str:
    minutes = round(seconds / 60)
    if minutes < 2:
        return f"about {seconds:.0f} s"
    days, hours = divmod(minutes // 60, 24)
    parts = [f"{days} d" if days else "", f"{hours} h" if hours else "", f"{minutes % 60} min" if not days else ""]
    return f"about {' '.join(filter(None, parts))}"


if __name__ == "__main__":
    main()
