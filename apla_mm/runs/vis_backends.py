"""Further places to write losses and learning rates to, such as TensorBoard."""

import copy
from pathlib import Path

from mmengine.config import Config
from mmengine.dist import is_main_process
from mmengine.registry import VISBACKENDS
from mmengine.runner import Runner
from mmengine.visualization import BaseVisBackend, WandbVisBackend

from ..internals import add_backend


def add_vis_backends(runner: Runner) -> None:
    """Give a runner's visualizer the back ends of ``vis_backends`` in its config, beside those that it has.

    They are given by their registered names, or as dicts with further settings; one that the visualizer has already is
    left out. They write to ``vis_data``, where the visualizer's own do.

    Args:
        runner: The runner.

    Raises:
        TypeError: ``vis_backends`` is something else.
        ImportError: The package that a back end needs is not installed.
    """
    wanted = runner.cfg.get("vis_backends") or []
    if not is_main_process():
        return
    for one in [wanted] if isinstance(wanted, str | dict) else wanted:
        if not isinstance(one, str | dict):
            raise TypeError(f"vis_backends: {one!r} must be a name such as 'TensorboardVisBackend', or a dict with it")
        settings = dict(type=one) if isinstance(one, str) else copy.deepcopy(dict(one))
        name = settings.pop("name", None)
        settings.setdefault("save_dir", str(Path(runner.log_dir, "vis_data")))
        backend = VISBACKENDS.build(settings)
        name = name or type(backend).__name__
        if runner.visualizer.get_backend(name) is not None:
            continue
        _add_config(backend, runner.cfg)
        add_backend(runner.visualizer, name, backend)


def _add_config(backend: BaseVisBackend, cfg: Config) -> None:
    if not isinstance(backend, WandbVisBackend):
        backend.add_config(cfg)
        return
    try:
        run = backend.experiment
    except ImportError as error:
        raise ImportError("vis_backends: WandbVisBackend: pip install -r requirements/wandb.txt") from error
    # its add_config would upload all Python files below the current folder too, those of environments among them
    run.config.update(cfg.to_dict(), allow_val_change=True)
