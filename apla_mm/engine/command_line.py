"""What ``tools/train.py`` and ``tools/test.py`` have in common."""

import argparse
import os
from pathlib import Path

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from .data_check import check_folders
from .shared_options import apply_shared_options


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share."""
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/CONFIG'S NAME)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        default={},
        metavar="KEY=VALUE",
        help="override settings of the config, as in optim_wrapper.optimizer.lr=1e-4 or key=a,b or key='[(1,2)]'; "
        "data_root, classes, crop_size and max_iters are set everywhere they matter",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch.distributed.launch")


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the arguments name, with their options merged, and check that its data are there.

    Raises:
        DataError: A folder or file that the data sets name does not exist.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    # checkpoints are pickles of strangers: mmengine's fall-back to a full unpickling is shut off
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    cfg = Config.fromfile(args.config)
    cfg.launcher = args.launcher
    apply_shared_options(cfg, args.cfg_options)
    cfg.merge_from_dict(args.cfg_options)  # afterwards: what is set in one place by name has the last word
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    return cfg


def build_runner(cfg: Config) -> Runner:
    """The runner of the config's type, after a look at the data's folders."""
    check_folders(cfg)
    return RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
