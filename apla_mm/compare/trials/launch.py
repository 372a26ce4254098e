"""Where trials run: processes here, each with a GPU if there is one, or Slurm jobs; both by submitit."""

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

MINUTES = 60 * 24  #: a trial's time, unless Slurm is given another


class Launcher:
    """Starts calls in processes or jobs of their own.

    Args:
        folder: For submitit's files.
        on: ``'local'`` or ``'slurm'``.
        gpus: Here, the numbers of those that may be used: each call sees the one with the fewest others.
        slurm: What ``sbatch`` is to get, as submitit names it: ``dict(partition='gpu', gpus_per_node='1')``.

    Raises:
        ImportError: submitit is not installed.
    """

    def __init__(self, folder: Path, on: str, gpus: Sequence[int] = (), slurm: Mapping[str, str] | None = None) -> None:
        try:
            import submitit
        except ImportError as error:
            raise ImportError("trials are started by submitit, which is not installed: pip install submitit") from error
        self._gpus = list(gpus) if on == "local" else []
        if on == "local":
            self._executor: Any = submitit.LocalExecutor(folder=folder)
            self._executor.update_parameters(timeout_min=MINUTES)
        else:
            self._executor = submitit.AutoExecutor(folder=folder, cluster=on)
            further = {f"slurm_{key}": value for key, value in (slurm or {}).items()}
            self._executor.update_parameters(timeout_min=MINUTES, name="compare", **further)
        self._jobs: list[tuple[int | None, Any]] = []

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Start ``function(*arguments)``; gives submitit's job."""
        gpu = None
        if self._gpus:
            busy = [gpu for gpu, job in self._jobs if not job.done()]
            gpu = min(self._gpus, key=busy.count)
            # submitit hides all GPUs of a local job that does not ask for some
            self._executor.update_parameters(gpus_per_node=1, visible_gpus=[gpu])
        self._jobs.append((gpu, self._executor.submit(function, *arguments)))
        return self._jobs[-1][1]

    def cancel(self) -> None:
        """End what runs."""
        for _, job in self._jobs:
            if not job.done():
                job.cancel()


def visible_gpus() -> list[int]:
    """The numbers of this machine's GPUs that this process may use.

    Raises:
        ValueError: ``CUDA_VISIBLE_DEVICES`` names them otherwise than by numbers.
    """
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given is None:
        return list(range(torch.cuda.device_count()))
    names = [name.strip() for name in given.split(",") if name.strip()]
    if not all(name.isdecimal() for name in names):
        raise ValueError(f"CUDA_VISIBLE_DEVICES={given}: trials are given GPUs by their numbers, as in 0,1")
    return [int(name) for name in names]
