"""What ``tools/train.py`` and ``tools/test.py`` have in common."""

import argparse
import os
import re
from collections.abc import Mapping, Sequence
from os.path import join
from pathlib import Path
from typing import Any

from mmengine.config import Config, DictAction
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..data.data_check_hook import DataCheckHook
from ..data.folders import LOADERS, check_folders, datasets_of, evaluators_of
from .launching import join_processes, prepare_launch
from .shared_options import apply_shared_options


class _OptionsAction(DictAction):
    """DictAction that leaves the spaces inside names such as 'traffic light'."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        hidden = [re.sub(r"(?<=\w) +(?=\w)", lambda spaces: "\0" * len(spaces.group()), value) for value in values]
        super().__call__(parser, namespace, hidden, option_string)
        options = getattr(namespace, self.dest)
        setattr(namespace, self.dest, {key: _with_spaces(value) for key, value in options.items()})


def _with_spaces(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_with_spaces, value))
    return value.replace("\0", " ") if isinstance(value, str) else value


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that training and testing share."""
    parser.add_argument("--work-dir", help="folder for logs and checkpoints (default: work_dirs/CONFIG'S NAME)")
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_OptionsAction,
        default={},
        metavar="KEY=VALUE",
        help="override settings of the config, as in optim_wrapper.optimizer.lr=1e-4 or key=a,b or key='[(1,2)]'; "
        "data_root, classes, crop_size and max_iters are set everywhere they matter",
    )
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch.distributed.launch")


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the arguments name, with their options merged.

    Raises:
        ValueError: An option's value is of the wrong kind.
        RuntimeError: The variables that the launcher should have set are missing.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    # checkpoints are pickles of strangers: mmengine's fall-back to a full unpickling is shut off
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    cfg = Config.fromfile(args.config)
    apply_shared_options(cfg, args.cfg_options)
    cfg.merge_from_dict(args.cfg_options)  # afterwards: what is set in one place by name has the last word
    _follow_data_sets(cfg, args.cfg_options)
    prepare_launch(cfg, args.launcher)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    return cfg


def _follow_data_sets(cfg: Config, options: Mapping[str, Any]) -> None:
    """Let evaluators compare with the annotation file of the data set that they score, unless an option names one."""
    for loader in LOADERS[1:]:
        name = loader.replace("dataloader", "evaluator")
        datasets = datasets_of(cfg, loader)
        if len(datasets) != 1 or not datasets[0].get("ann_file"):
            continue
        for i, evaluator in enumerate(evaluators_of(cfg, loader)):
            given = f"{name}.ann_file" in options or f"{name}.{i}.ann_file" in options
            if evaluator.get("ann_file") and not given:
                evaluator["ann_file"] = join(datasets[0].get("data_root") or "", datasets[0]["ann_file"])


def build_runner(cfg: Config, loaders: Sequence[str] = LOADERS) -> Runner:
    """The runner of the config's type, after a look at the data.

    Args:
        cfg: The config.
        loaders: The data loaders that will be used.

    Raises:
        DataError: A folder or file does not exist, or an annotation file is not in order.
    """
    check_folders(cfg, loaders)
    join_processes(cfg)
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    for hook in runner.hooks:
        if isinstance(hook, DataCheckHook):
            hook.check_annotation_files(runner, loaders)
    return runner
