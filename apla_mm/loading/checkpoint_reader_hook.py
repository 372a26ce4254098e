"""The hook that has a run read its checkpoints without running what is in them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import FlexibleRunner, Runner, find_latest_checkpoint
from torch import nn

from ..delta.weights_file import kind_of
from ..internals import SCHEME, is_local_file, load_path, resumes, set_load_path
from ..processes import in_every_process
from ..text import listed
from .checkpoint_reader import by_this_reader
from .plain_values import make_plain, plain

#: torch's: no pickle is run, whatever a caller of torch.load asks for
VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


class CheckpointReaderHook(Hook):
    """Reads what a run begins with by this package's reader, and saves checkpoints that all readers can read.

    mmengine refuses a checkpoint for a single value of a type that it does not know, such as a path among its settings,
    or unpickles it fully, which runs whatever is in it. Here the types are known that checkpoints commonly hold beside
    weights (namespaces, paths, deques, dicts of all kinds, dates); others are left out and named in the log, and
    nothing is run. So it is for ``load_from``, for ``resume``, also of the latest checkpoint, and for what parts of the
    model name in their ``init_cfg``, as long as these are local files. A file that is missing, or none of weights, ends
    the run before training or scoring.

    What mmengine loads from elsewhere (``http://``, ``open-mmlab://``, ``torchvision://``, ``modelzoo://``,
    ``mmcls://``, ``s3://``) it reads itself. So that nothing in it is run either, torch's environment variable
    ``TORCH_FORCE_WEIGHTS_ONLY_LOAD`` is set from ``before_run`` until all is loaded; ``apla-mm train`` and
    ``apla-mm test`` set it for good.

    FlexibleRunner loads before it calls hooks: this package's tools prepare it, with stock ones only what it saves is
    of this hook.
    """

    priority = "HIGHEST"

    def __init__(self) -> None:
        self._variable: list[str | None] = []  # as it was, while it is changed

    def before_run(self, runner: Runner) -> None:
        """Have the runner load by this package's reader.

        Raises:
            FileNotFoundError: What it is to load does not exist.
            ValueError: It is no file of weights.
            RuntimeError: So it is in another process.
        """
        if not self._variable:
            self._variable = [os.environ.get(VARIABLE)]
            os.environ[VARIABLE] = "1"
        read_by_apla_mm(runner)

    def before_train(self, runner: Runner) -> None:
        """All is loaded: leave the environment as it was."""
        while self._variable:
            before = self._variable.pop()
            if before is None:
                os.environ.pop(VARIABLE, None)
            else:
                os.environ[VARIABLE] = before

    before_val = before_test = before_train

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Compare the data set's metainfo by its values: mmengine compares pickles, and warns of equal ones."""
        meta = checkpoint.get("meta")
        if not resumes(runner) or not isinstance(meta, dict) or "dataset_meta" not in meta:
            return
        own = getattr(runner.train_dataloader.dataset, "metainfo", None)
        if _same(plain(own), plain(meta["dataset_meta"])):
            meta["dataset_meta"] = own

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """Make plain what lies beside the weights: parts of the config, say, in the data set's metainfo."""
        make_plain(checkpoint)


def add_checkpoint_reader(runner: Runner) -> None:
    """Give a runner the hook, if its config has none."""
    if not any(isinstance(hook, CheckpointReaderHook) for hook in runner.hooks):
        runner.register_hook(CheckpointReaderHook(), CheckpointReaderHook.priority)
    if isinstance(runner, FlexibleRunner):
        read_by_apla_mm(runner)  # it calls before_run once it has loaded


def read_by_apla_mm(runner: Runner) -> None:
    """Have a runner read local files by :func:`~.checkpoint_reader.load_from_apla_mm`.

    Raises:
        FileNotFoundError: What it is to load does not exist.
        ValueError: It is no file of weights.
        RuntimeError: So it is in another process.
    """
    path, latest = load_path(runner), False
    if path is None and resumes(runner):
        path, latest = find_latest_checkpoint(runner.work_dir), True
    if path is not None and is_local_file(path) and not _is_shards(runner, path):
        in_every_process(lambda: _check(Path(path).expanduser(), latest))
        if latest:
            print_log(f"resuming from the latest checkpoint '{path}'", logger="current")
        set_load_path(runner, by_this_reader(path))
    if isinstance(runner.model, nn.Module):
        read_init_cfg_by_apla_mm(runner.model)


def read_init_cfg_by_apla_mm(model: nn.Module) -> None:
    """Have the parts of a model read so the local files that their ``init_cfg`` names.

    What a part was made of, and the config, stay as they are.
    """
    for module in model.modules():
        settings = getattr(module, "init_cfg", None)
        if isinstance(settings, list | tuple):
            module.init_cfg = [_named_for_reader(one) for one in settings]  # type: ignore[assignment]
        elif isinstance(settings, Mapping):
            module.init_cfg = _named_for_reader(settings)


def _named_for_reader(setting: Any) -> Any:
    path = setting.get("checkpoint") if isinstance(setting, Mapping) else None
    if not isinstance(path, str | Path) or not is_local_file(str(path)) or str(path).startswith(SCHEME):
        return setting
    changed: Any = type(setting)(setting)
    changed["checkpoint"] = by_this_reader(path)
    return changed


def _is_shards(runner: Runner, path: str) -> bool:
    """Whether this is a folder, as some of FlexibleRunner's strategies write."""
    return isinstance(runner, FlexibleRunner) and not Path(path).expanduser().is_file()


def _check(path: Path, latest: bool) -> None:
    try:
        kind_of(path)
    except FileNotFoundError as error:
        others = [other.name for other in path.parent.glob("*.pth")] if path.parent.is_dir() else []
        there = f"; its folder has {listed(others, 4)}" if others else ""
        cure = "name one that is by --resume PATH" if latest else "name one that is there"
        named = ", which 'last_checkpoint' of the work dir names" if latest else ""
        raise FileNotFoundError(f"checkpoint {error}{named}{there}: {cure}") from error
    except ValueError as error:
        raise ValueError(f"checkpoint {error}") from error


def _same(a: Any, b: Any) -> bool:
    try:
        return bool(a == b)
    except ValueError:  # arrays
        return False
