"""The base of a delta, made anew from the weights that a config names."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import BaseTTAModel
from mmengine.registry import MODELS
from mmengine.runner import Runner, load_checkpoint
from torch import Tensor

from ..delta import DeltaError, base_digests, check_base, load_delta
from ..delta.base_file import BASE_FILE, base_name, find_base, save_base
from ..internals import load_path, resumes
from ..processes import in_main_process
from ..text import listed
from .checkpoint_reader import by_this_reader
from .checkpoint_reader_hook import read_init_cfg_by_apla_mm

SUFFIX = ".delta.safetensors"  #: of a delta, in place of its checkpoint's


def initial_state(cfg: Config) -> dict[str, Tensor]:
    """The weights that training by a config begins with: pretrained ones, and those of ``load_from``.

    Args:
        cfg: The config; its scope must be the default one.

    Returns:
        The model's state dict, on the CPU.
    """
    with torch.random.fork_rng():
        model: Any = MODELS.build(cfg.model)
        if isinstance(model, BaseTTAModel):
            model = model.module
        read_init_cfg_by_apla_mm(model)
        if hasattr(model, "init_weights"):
            model.init_weights()
    if cfg.get("load_from"):
        load_checkpoint(model, by_this_reader(cfg.load_from), map_location="cpu")
    return dict(model.state_dict())


def make_base(cfg: Config, path: str | Path, folder: str | Path | None = None) -> Path:
    """Write the base file of a delta, from the weights that a config names.

    Args:
        cfg: The config that the delta was trained with; its scope must be the default one.
        path: The delta.
        folder: Where to; None for ``bases`` in the delta's folder.

    Returns:
        The file.

    Raises:
        DeltaError: These weights are not the delta's base.
        OSError: It cannot be written.
    """
    delta, state = load_delta(path), initial_state(cfg)
    expected = delta.header.base
    if missing := expected.keys() - state.keys():
        raise DeltaError(f"{listed(missing)} of the base are not in the config's model")
    base = {name: state[name] for name in sorted(expected)}
    check_base(expected, base_digests(base, delta.channels))
    if (name := base_name(base)) != delta.header.extra.get(BASE_FILE):
        raise DeltaError(f"the channels that train began elsewhere: these weights are the base file '{name}'")
    return save_base(base, Path(folder or Path(path).parent / "bases"))


def delta_path(checkpoint: str | Path) -> Path:
    """The delta beside a checkpoint."""
    path = Path(checkpoint)
    return path.with_name(path.stem + SUFFIX)


def prepare_to_load(runner: Runner) -> None:
    """Ready a runner to load a delta, if that is what it begins with: its base file must be found.

    Raises:
        ValueError: The run shall be resumed from a delta.
        DeltaError: The base file is not found, and the weights that the config names are not the base.
        RuntimeError: So it is in the first process.
    """
    path = load_path(runner) or ""
    if resumes(runner) and path.endswith(".safetensors"):
        beside = Path(path.removesuffix(SUFFIX) + ".pth")
        cure = f"resume from '{beside}', beside it" if beside.is_file() else "resume from a .pth of the run"
        raise ValueError(
            f"'{path}' holds weights alone, no optimizer and no schedules, and a run cannot go on from it: {cure}; to "
            "start anew from its weights leave out --resume and set load_from"
        )
    _provide_base(runner)


def _provide_base(runner: Runner) -> None:
    """Make the base file of the delta that a runner is to load, if it is not found, from the weights its config names.

    Raises:
        DeltaError: It cannot be made, or these weights are not the base.
        RuntimeError: So it is in the first process.
    """
    path = load_path(runner) or ""
    if path.endswith(".safetensors") and isinstance(runner.cfg.get("model"), dict):
        in_main_process(lambda: provide_base(path, runner.cfg))


def provide_base(path: str | Path, cfg: Config) -> None:
    """Make a delta's base file, if it is not found, from the weights that a config names; of other files, do nothing.

    Args:
        path: The delta.
        cfg: The config; its scope must be the default one.

    Raises:
        DeltaError: These weights are not its base.
    """
    try:
        name = load_delta(path).header.extra[BASE_FILE]
    except (DeltaError, KeyError):  # for the reader to report
        return
    try:
        find_base(name, Path(path))
    except DeltaError as error:
        cfg = deepcopy(cfg)
        cfg.load_from = None  # the delta
        try:
            made = make_base(cfg, path)
        except Exception as reason:  # a model fails to be built or loaded in any way
            raise DeltaError(f"{error}. The weights that the config names are not its base: {reason}") from reason
        print_log(f"the delta's base is made from the weights that the config names: '{made}'", logger="current")
