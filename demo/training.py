"""One training by a config, quiet on the terminal."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

CONFIGS = Path(__file__).resolve().parents[1] / "configs/demo"


class RecordHook(Hook):
    """Keeps the losses and the last validation's metrics, and reports each step.

    Args:
        advance: Called after each training step.
    """

    def __init__(self, advance: Callable[[], None]) -> None:
        self.advance = advance
        self.losses: list[float] = []
        self.metrics: dict[str, float] = {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.losses.append(float(outputs["loss"]))
        self.advance()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = {name: float(value) for name, value in (metrics or {}).items()}


def load_config(method: str, steps: int, work_dir: Path, seed: int) -> Config:
    """The config of a method, with another number of steps and its own folder for logs and checkpoints."""
    cfg = Config.fromfile(CONFIGS / f"digits_{method}.py")
    cfg.work_dir = str(work_dir)
    cfg.experiment_name = f"digits_{method}_{time.time_ns()}"  # a name can be used once in a process
    cfg.randomness = dict(seed=seed)
    cfg.train_cfg.update(max_iters=steps, val_interval=steps)
    cfg.param_scheduler[-1].end = steps
    cfg.default_hooks.checkpoint.interval = steps
    return cfg


def train(cfg: Config, advance: Callable[[], None] = lambda: None) -> tuple[Runner, RecordHook]:
    """Trains and validates; what OpenMMLab writes to the terminal goes to ``terminal.log`` in the config's folder."""
    with _terminal_to(Path(cfg.work_dir) / "terminal.log"):
        runner = Runner.from_cfg(cfg)
        record = RecordHook(advance)
        runner.register_hook(record)
        runner.train()
    return runner, record


@contextmanager
def _terminal_to(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file, redirect_stdout(file), redirect_stderr(file):
        yield
