"""What ``apla-mm train`` and ``apla-mm test`` have in common."""

import argparse
import os
from collections.abc import Mapping, Sequence
from os.path import join
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from ..config_files import read_model_config
from ..data.class_folders import check_class_folders
from ..data.data_check_hook import DataCheckHook
from ..data.folders import LOADERS, check_folders, datasets_of, evaluators_of
from ..loading.checkpoint_reader_hook import add_checkpoint_reader
from ..loading.weights_check_hook import add_weights_check
from ..option_values import parse_value
from .agreement import check_agreement
from .class_folders import check_classes_are_counted, name_classes_by_folders
from .known_keys import check_keys, merge_options
from .launching import join_processes, prepare_launch
from .method import take_method
from .pipelines import in_loaders, pipelines_by_name, set_pipelines_by_name
from .shared_options import apply_shared_options, drop_settings_of_workers

_OF_MMENGINE = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")


class _OptionsAction(argparse.Action):
    """Options as KEY=VALUE, read by :func:`parse_value`; those of several goes are all kept."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        options = dict(getattr(namespace, self.dest, None) or {})
        for option in values:
            key, equals, text = option.partition("=")
            if not all(key.split(".")) or not equals:
                parser.error(
                    f"{option_string}: '{option}' is not KEY=VALUE; a value with spaces or brackets has to be quoted, "
                    "as in 'data_root=/data/my images (1)'"
                )
            options[key] = parse_value(key, text)
        setattr(namespace, self.dest, options)


def add_common_arguments(parser: argparse.ArgumentParser, work_dir: str = "work_dirs/CONFIG'S NAME") -> None:
    """Add the flags that training and testing share.

    Args:
        parser: Of a command.
        work_dir: What ``--help`` says of the folder that is taken where none is given.
    """
    parser.add_argument("--work-dir", help=f"folder for logs and checkpoints (default: {work_dir})")
    add_cfg_options(parser)
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none", help="job launcher")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0, help="set by torch.distributed.launch")


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add the flag that overrides settings of the config."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=_OptionsAction,
        default={},
        metavar="KEY=VALUE",
        help="override settings of the config, as in optim_wrapper.optimizer.lr=1e-4 or key=a,b or key='[(1,2)]'; "
        "data_root, classes (or thing_classes and stuff_classes), crop_size, max_iters and with_mask=False (boxes "
        "alone) are set everywhere they matter; "
        "method=full, head, norm, bitfit, lora:r=8, wo, apla:r=64 or package.module.Class is how the backbone trains. "
        "Paths and names are taken as they are typed; class names that hold a comma are listed in quotes, as in "
        """'classes=["a, b","c"]'""",
    )


def load_config(args: argparse.Namespace) -> Config:
    """Read the config that the arguments name, with their options merged.

    Raises:
        ValueError: The config is no Python or has no model, an option's value is of the wrong kind, nothing reads an
            option, or mmpretrain is missing.
        RuntimeError: The variables that the launcher should have set are missing.
    """
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
    # checkpoints are pickles of strangers: mmengine's fall-back to a full unpickling is shut off
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"
    cfg = read_model_config(args.config)
    check_keys(cfg, args.cfg_options)
    followed = pipelines_by_name(cfg)
    options = take_method(cfg, args.cfg_options)
    apply_shared_options(cfg, options)
    # afterwards: what is set in one place by name has the last word
    merge_options(cfg, in_loaders(options, followed))
    set_pipelines_by_name(cfg, followed)
    drop_settings_of_workers(cfg, args.cfg_options)
    _follow_data_sets(cfg, args.cfg_options)
    name_classes_by_folders(cfg)
    _leave_out_hooks(cfg)
    prepare_launch(cfg, args.launcher)
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get("work_dir") is None:
        cfg.work_dir = str(Path("work_dirs") / Path(args.config).stem)
    return cfg


def _follow_data_sets(cfg: Config, options: Mapping[str, Any]) -> None:
    """Let evaluators compare with the files of the data set that they score, unless an option names others."""
    for loader in LOADERS[1:]:
        name = loader.replace("dataloader", "evaluator")
        datasets = datasets_of(cfg, loader)
        if len(datasets) != 1 or not datasets[0].get("ann_file"):
            continue
        places = dict(ann_file=datasets[0]["ann_file"], seg_prefix=(datasets[0].get("data_prefix") or {}).get("seg"))
        for i, evaluator in enumerate(evaluators_of(cfg, loader)):
            for key, place in places.items():
                given = f"{name}.{key}" in options or f"{name}.{i}.{key}" in options
                if evaluator.get(key) and place and not given:
                    evaluator[key] = join(datasets[0].get("data_root") or "", place)


def _leave_out_hooks(cfg: Config) -> None:
    """``default_hooks.NAME=None`` takes any hook out; mmengine knows that for its own six alone."""
    hooks = cfg.get("default_hooks") or {}
    for name in [name for name, hook in hooks.items() if hook is None and name not in _OF_MMENGINE]:
        hooks.pop(name)


def check_work_dir(work_dir: str) -> None:
    """See that a run can write into its folder, which need not be there yet.

    Raises:
        ValueError: It cannot.
    """
    place = Path(work_dir).absolute()
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir() or not os.access(place, os.W_OK):
        why = "is not writable" if place.is_dir() else "is a file"
        raise ValueError(f"work_dir '{work_dir}': '{place}' {why}: name another folder by --work-dir")


def build_runner(cfg: Config, loaders: Sequence[str] = LOADERS) -> Runner:
    """The runner of the config's type, after a look at the data.

    Args:
        cfg: The config.
        loaders: The data loaders that will be used.

    Raises:
        DisagreementError: Settings do not agree.
        DataError: A folder or file does not exist, or an annotation file is not in order.
        ValueError: The work dir cannot be written to.
    """
    check_work_dir(cfg.work_dir)
    warnings = check_agreement(cfg, loaders)
    check_folders(cfg, loaders)
    check_class_folders(cfg, loaders)
    check_classes_are_counted(cfg)
    join_processes(cfg)
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    for warning in warnings:
        runner.logger.warning(warning)
    add_checkpoint_reader(runner)
    add_weights_check(runner)
    for hook in runner.hooks:
        if isinstance(hook, DataCheckHook):
            hook.check_annotation_files(runner, loaders)
    return runner
