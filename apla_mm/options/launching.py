"""How the processes of one job find one another, on nodes with and without GPUs."""

import atexit
import datetime
import os
import re
import sys
from collections.abc import MutableMapping
from typing import Any, NoReturn

import torch
import torch.distributed
from mmengine.config import Config, ConfigDict
from mmengine.device import get_device
from mmengine.model import MMDistributedDataParallel
from mmengine.registry import MODEL_WRAPPERS
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from .sync_bn import sync_bn_to_bn

#: what torch.distributed reads -> where Slurm keeps it
_FROM_SLURM = {"RANK": "SLURM_PROCID", "WORLD_SIZE": "SLURM_STEP_NUM_TASKS", "LOCAL_RANK": "SLURM_LOCALID"}
#: what mmengine reads of Open MPI
_OF_MPI = ("OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK")
_LOWEST_PORT, _PORTS = 12000, 20000  # below the ports that Linux hands out by itself


def prepare_launch(cfg: Config, launcher: str) -> None:
    """Make a config and the environment ready for a launcher, in place.

    ``slurm`` becomes ``pytorch`` with its variables taken from Slurm's: mmengine's own ``slurm`` wants a GPU in every
    process. Without GPUs the processes talk through gloo, and DDP is :class:`CPUDistributedDataParallel`; other
    settings of ``model_wrapper_cfg``, and ``find_unused_parameters``, stay.

    Args:
        cfg: The config.
        launcher: ``none``, ``pytorch``, ``slurm`` or ``mpi``.

    Raises:
        RuntimeError: The launcher's variables are missing, or there are fewer GPUs than processes.
    """
    if launcher == "slurm":
        set_environment_from_slurm(os.environ)
        launcher = "pytorch"
    cfg.launcher = launcher
    if launcher == "mpi" and (missing := [name for name in _OF_MPI if name not in os.environ]):
        raise RuntimeError(
            f"--launcher mpi: {', '.join(missing)} not set, which Open MPI's mpirun does: put mpirun before apla-mm"
        )
    if launcher != "pytorch":
        return
    missing = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name not in os.environ]
    if missing:
        raise RuntimeError(
            f"--launcher pytorch: {', '.join(missing)} not set; start by torchrun -m apla_mm train "
            "CONFIG --launcher pytorch, or by a clone's tools/dist_train.sh or tools/dist_test.sh"
        )
    if _on_cpu():
        _prepare_for_cpu(cfg)
        return
    rank, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if get_device() == "cuda" and rank >= gpus:
        raise RuntimeError(
            f"LOCAL_RANK={rank}, and this process sees {gpus} GPUs: start at most one process for each GPU of a node, "
            "or hide all of them by CUDA_VISIBLE_DEVICES=-1"
        )


def set_environment_from_slurm(environment: MutableMapping[str, str]) -> None:
    """Set RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT from the variables that srun sets.

    MASTER_ADDR and MASTER_PORT are kept where they are set. The port follows from the numbers of job and step, so that
    jobs that share a node do not meet.

    Args:
        environment: The environment, changed in place.

    Raises:
        RuntimeError: A variable is missing: the process was not started by srun.
    """
    needed = [*_FROM_SLURM.values(), "SLURM_JOB_ID", "SLURM_STEP_ID", "SLURM_STEP_NODELIST"]
    missing = [name for name in needed if name not in environment]
    if missing:
        raise RuntimeError(
            f"--launcher slurm: {', '.join(missing)} not set, which srun does for each of its tasks: put srun "
            "before apla-mm in your batch script, or start by a clone's tools/slurm_train.sh or tools/slurm_test.sh"
        )
    environment.update({name: environment[source] for name, source in _FROM_SLURM.items()})
    if torch.cuda.device_count() == 1:
        environment["LOCAL_RANK"] = "0"  # --gpus-per-task: each task sees its own GPU alone, as the first
    environment.setdefault("MASTER_ADDR", first_host(environment["SLURM_STEP_NODELIST"]))
    number = int(environment["SLURM_JOB_ID"]) + 1000 * int(environment["SLURM_STEP_ID"])
    environment.setdefault("MASTER_PORT", str(_LOWEST_PORT + number % _PORTS))


def first_host(node_list: str) -> str:
    """The first of a list of hosts as Slurm writes it: ``gpu[07-09,12],login`` gives ``gpu07``.

    Args:
        node_list: The list.

    Returns:
        The host's name; ``scontrol``, which containers may lack, is not asked.
    """
    first = re.match(r"(\[[^\]]*\]|[^,\[])*", node_list)
    assert first is not None
    return re.sub(r"\[([^\],-]*)[^\]]*\]", r"\1", first.group())


def _on_cpu() -> bool:
    return get_device() == "cpu"


def _prepare_for_cpu(cfg: Config) -> None:
    if cfg.get("env_cfg", {}).get("dist_cfg", {}).get("backend", "nccl") == "nccl":
        cfg.merge_from_dict({"env_cfg.dist_cfg.backend": "gloo"})
    if cfg.get("model_wrapper_cfg") is None:  # mmengine's default
        unused = cfg.get("find_unused_parameters", False)
        cfg.model_wrapper_cfg = dict(broadcast_buffers=False, find_unused_parameters=unused)
    _prepare_wrapper_for_cpu(cfg.model_wrapper_cfg)
    if cfg.get("runner_type") == "FlexibleRunner":
        if cfg.get("strategy") is None:  # mmengine's default
            cfg.strategy = dict(type="DDPStrategy")
        if cfg.strategy.type == "DDPStrategy":
            if cfg.strategy.get("model_wrapper") is None:
                cfg.strategy.model_wrapper = dict(broadcast_buffers=False)
            _prepare_wrapper_for_cpu(cfg.strategy.model_wrapper)


def _prepare_wrapper_for_cpu(wrapper: ConfigDict) -> None:
    if wrapper.get("type", "MMDistributedDataParallel") == "MMDistributedDataParallel":
        wrapper.type = "CPUDistributedDataParallel"
    elif issubclass(MODEL_WRAPPERS.get(wrapper.type), DistributedDataParallel):
        wrapper.device_ids = None


def join_processes(cfg: Config) -> None:
    """Start the process group of processes without GPUs; elsewhere it is left to mmengine's Runner.

    Args:
        cfg: A config that :func:`prepare_launch` has seen.
    """
    # mmengine asks for a GPU even with gloo, but takes a group that is there
    if cfg.get("launcher") != "pytorch" or not _on_cpu() or torch.distributed.is_initialized():
        return
    settings = cfg.env_cfg.dist_cfg
    timeout = settings.get("timeout")
    torch.distributed.init_process_group(
        settings.backend, timeout=None if timeout is None else datetime.timedelta(seconds=timeout)
    )


def end_process() -> None:
    """End a process of a group, with 0, once its run has ended well; does nothing without a group.

    What is to be done at exit is done, and files are flushed, but the interpreter is not taken down: a thread of the
    group that lets go of its last tensor meanwhile would abort the process.
    """
    if not torch.distributed.is_initialized():
        return
    torch.distributed.destroy_process_group()
    atexit._run_exitfuncs()
    leave()


def leave() -> NoReturn:
    """End a process with 0, with its files flushed, whatever its threads do."""
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(0)


class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's DDP for a model without a GPU: SyncBN, which wants one, becomes BN, and the log says so.

    Args:
        module: The model.
        **kwargs: Arguments of mmengine's DDP, but for ``device_ids``.
    """

    def __init__(self, module: nn.Module, **kwargs: Any) -> None:
        super().__init__(sync_bn_to_bn(module), **{**kwargs, "device_ids": None})
