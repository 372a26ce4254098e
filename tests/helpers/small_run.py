"""Training by the tools, in real processes, of a model that takes seconds, on what write_photos writes."""

import re
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from helpers import ROOT
from helpers.processes import ON_CPU, run, started

from apla_mm.loading.checkpoint_reader import read_checkpoint

CONFIG = ROOT / "configs/seg/apla_vitb_custom.py"
TRAIN, TEST = ROOT / "tools/train.py", ROOT / "tools/test.py"
DIST_TRAIN, DIST_TEST = ROOT / "tools/dist_train.sh", ROOT / "tools/dist_test.sh"

VIT = dict(depth=4, embed_dim=32, num_heads=2)
OPTIONS = [
    "classes=dark,bright",
    "crop_size=64",
    "model.backbone.model_name=vit_tiny_patch16_224",
    "model.backbone.pretrained=False",
    "model.backbone.out_indices=0,1,2,3",
    "model.backbone.apla.r=8",
    *(f"model.backbone.model_kwargs.{key}={value}" for key, value in VIT.items()),
    *(f"model.{head}.in_channels=32" for head in ("decode_head", *(f"auxiliary_head.{i}" for i in range(3)))),
    *(f"model.{head}.channels=16" for head in ("decode_head", *(f"auxiliary_head.{i}" for i in range(3)))),
    "train_dataloader.batch_size=2",
    *(f"{split}_dataloader.num_workers=0" for split in ("train", "val", "test")),
    *(f"{split}_dataloader.persistent_workers=False" for split in ("train", "val", "test")),
    "optim_wrapper.optimizer.lr=1e-3",
    "param_scheduler.0.start_factor=0.5",
    "param_scheduler.0.end=1",
    "param_scheduler.1.begin=1",
    "param_scheduler.1.end=8",
    "train_cfg.max_iters=4",
    "train_cfg.val_interval=4",
    "default_hooks.checkpoint.interval=2",
    "default_hooks.logger.interval=1",
    "randomness.seed=0",
]


#: nothing is saved but by a signal
ENDLESS = ["train_cfg.max_iters=100000", "train_cfg.val_interval=100000", "default_hooks.checkpoint.interval=100000"]


def run_small(tool: Path, *arguments: object, options: list[str], **how: Any) -> str:
    """What one of the tools writes with the small model; `processes.run` describes the rest."""
    return run(tool, *arguments, "--cfg-options", *OPTIONS, *options, **how).output


def started_small(
    tool: Path, *arguments: object, options: list[str], log: Path
) -> AbstractContextManager[subprocess.Popen[str]]:
    """Training of the small model without GPUs, once it has trained for three iterations."""
    command = (tool, *arguments, "--cfg-options", *OPTIONS, *options)
    return started(*command, log=log, until=r"Iter\(train\) \[ *3/", env=ON_CPU)


def saved_iteration(work_dir: Path, output: str) -> int:
    """The iteration after which the only checkpoint was saved, by the log, its name and its content."""
    (path,) = work_dir.glob("*.pth")
    (told,) = re.findall(r"stopped after iteration (\d+): saved (\S+); ", output)
    assert told == (str(read_checkpoint(path)["meta"]["iter"]), str(path)) and path.name == f"iter_{told[0]}.pth"
    assert (work_dir / "last_checkpoint").read_text() == str(path)
    return int(told[0])


def miou(output: str, each: int) -> float:
    """The score in a log, of so many iterations of validation or test."""
    (value,) = re.findall(rf"Iter\((?:val|test)\) \[{each}/{each}\].* mIoU: ([\d.]+)", output)
    return float(value)
