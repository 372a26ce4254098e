import os
from pathlib import Path

import pytest
import torch
from helpers.processes import run_python
from mmcv.cnn import build_norm_layer
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

from apla_mm.options import launching
from apla_mm.options.launching import (
    first_host,
    join_processes,
    prepare_launch,
    set_environment_from_slurm,
)

CONFIG = Path(__file__).parents[2] / "configs/seg/apla_vitb_custom.py"
STEP = {
    "SLURM_PROCID": "9",
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "4711",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07,09-11]",
}
OURS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launching, "get_device", lambda: "cpu")


@pytest.fixture
def ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        monkeypatch.setenv(name, "0")


@pytest.fixture
def cfg() -> Config:
    return Config.fromfile(CONFIG)


@pytest.mark.parametrize(
    ("node_list", "host"),
    [
        ("n1", "n1"),
        ("n1,n2", "n1"),
        ("gpu[07-09,12],login", "gpu07"),
        ("gpu[3,5-6]", "gpu3"),
        ("rack[1-2]-n[04-08].site", "rack1-n04.site"),
        ("127.0.0.[1-2]", "127.0.0.1"),
    ],
)
def test_first_host(node_list: str, host: str) -> None:
    assert first_host(node_list) == host


def test_slurm_gives_every_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    environment = dict(STEP, LOCAL_RANK="0", RANK="5")  # of something around it
    set_environment_from_slurm(environment)
    assert [environment[name] for name in OURS] == ["9", "16", "1", "gpu07", "16711"]


def test_each_job_and_step_has_a_port_of_its_own() -> None:
    ports = set()
    for job, step in ((1, 0), (2, 0), (2, 1), (19999, 0), (99999999, 3)):
        environment = dict(STEP, SLURM_JOB_ID=str(job), SLURM_STEP_ID=str(step))
        set_environment_from_slurm(environment)
        ports.add(int(environment["MASTER_PORT"]))
    assert len(ports) == 5 and all(12000 <= port < 32000 for port in ports)


def test_where_processes_meet_can_be_set() -> None:
    environment = dict(STEP, MASTER_ADDR="10.0.0.1", MASTER_PORT="2000")
    set_environment_from_slurm(environment)
    assert (environment["MASTER_ADDR"], environment["MASTER_PORT"]) == ("10.0.0.1", "2000")


def test_task_that_sees_its_own_gpu_alone_uses_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    environment = dict(STEP)
    set_environment_from_slurm(environment)
    assert environment["LOCAL_RANK"] == "0"


def test_batch_script_without_srun_is_an_error() -> None:
    batch = {name: value for name, value in STEP.items() if "STEP" not in name}
    with pytest.raises(RuntimeError, match="SLURM_STEP_NUM_TASKS, SLURM_STEP_ID, SLURM_STEP_NODELIST not set.*srun"):
        set_environment_from_slurm(batch)


def test_pytorch_launcher_without_torchrun_is_an_error(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in OURS:
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError, match="RANK, WORLD_SIZE, LOCAL_RANK not set; start by torchrun -m apla_mm train"):
        prepare_launch(cfg, "pytorch")


def test_mpi_launcher_without_mpirun_is_an_error(cfg: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_RANK", "SIZE", "RANK"):
        monkeypatch.delenv(f"OMPI_COMM_WORLD_{name}", raising=False)
    with pytest.raises(
        RuntimeError, match=r"--launcher mpi: OMPI_COMM_WORLD_LOCAL_RANK, .* not set.*put mpirun before"
    ):
        prepare_launch(cfg, "mpi")


def test_more_processes_than_gpus_are_an_error(cfg: Config, monkeypatch: pytest.MonkeyPatch, ranks: None) -> None:
    monkeypatch.setattr(launching, "get_device", lambda: "cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("LOCAL_RANK", "1")
    prepare_launch(cfg, "pytorch")
    monkeypatch.setenv("LOCAL_RANK", "2")
    with pytest.raises(RuntimeError, match="LOCAL_RANK=2, and this process sees 2 GPUs"):
        prepare_launch(cfg, "pytorch")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_single_process_or_one_with_a_gpu_keeps_its_config(
    cfg: Config, device: str, monkeypatch: pytest.MonkeyPatch, ranks: None
) -> None:
    monkeypatch.setattr(launching, "get_device", lambda: device)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    launcher = "none" if device == "cpu" else "pytorch"
    before = cfg.copy()
    prepare_launch(cfg, launcher)
    assert cfg.to_dict() == {**before.to_dict(), "launcher": launcher}


@pytest.mark.parametrize(
    ("settings", "wrapper"),
    [
        ({}, dict(broadcast_buffers=False, find_unused_parameters=False)),
        (dict(find_unused_parameters=True), dict(broadcast_buffers=False, find_unused_parameters=True)),
        (dict(model_wrapper_cfg=dict(static_graph=True)), dict(static_graph=True)),
    ],
)
def test_config_of_a_process_without_a_gpu(
    cfg: Config, settings: dict, wrapper: dict, monkeypatch: pytest.MonkeyPatch, cpu: None
) -> None:
    for name, value in STEP.items():
        monkeypatch.setenv(name, value)
    for name in OURS:
        monkeypatch.setenv(name, "0")
    cfg.merge_from_dict(settings)
    prepare_launch(cfg, "slurm")
    assert (cfg.launcher, cfg.env_cfg.dist_cfg.backend) == ("pytorch", "gloo")
    assert cfg.model_wrapper_cfg == dict(wrapper, type="CPUDistributedDataParallel")
    assert os.environ["RANK"] == "9"


def test_another_wrapper_and_backend_stay(cfg: Config, cpu: None, ranks: None) -> None:
    cfg.model_wrapper_cfg = dict(type="MMSeparateDistributedDataParallel")
    cfg.env_cfg.dist_cfg.backend = "mpi"
    prepare_launch(cfg, "pytorch")
    assert cfg.model_wrapper_cfg == dict(type="MMSeparateDistributedDataParallel", device_ids=None)
    assert cfg.env_cfg.dist_cfg.backend == "mpi"


def test_config_that_says_nothing_about_processes_gets_a_backend(cpu: None, ranks: None) -> None:
    cfg = Config(dict())
    prepare_launch(cfg, "pytorch")
    assert cfg.env_cfg.dist_cfg == dict(backend="gloo")


def test_group_of_one_wraps_a_model_without_sync_bn(
    monkeypatch: pytest.MonkeyPatch, cpu: None, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in dict(RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1", MASTER_PORT="0").items():
        monkeypatch.setenv(name, value)
    cfg = Config(dict(launcher="pytorch", env_cfg=dict(dist_cfg=dict(backend="gloo", timeout=60))))
    _, norm = build_norm_layer(dict(type="SyncBN"), 4)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), norm)
    join_processes(cfg)
    try:
        join_processes(cfg)  # nothing, since there is a group
        wrapped = MODEL_WRAPPERS.build(ConfigDict(type="CPUDistributedDataParallel", module=model, device_ids=[0]))
        assert wrapped.device_ids is None and not isinstance(wrapped.module[1], nn.SyncBatchNorm)
        assert wrapped.module[1].weight is norm.weight and wrapped.module[1].running_var is norm.running_var
        wrapped(torch.randn(2, 3, 4, 4)).sum().backward()
        assert norm.weight.grad is not None
    finally:
        torch.distributed.destroy_process_group()


def test_process_of_a_group_ends_with_all_that_is_due_at_exit(tmp_path: Path) -> None:
    done = run_python(
        f"""
        import atexit, os
        import torch.distributed
        from apla_mm.options.launching import end_process
        end_process()  # nothing, since there is no group
        torch.distributed.init_process_group("gloo", init_method="file://{tmp_path}/store", rank=0, world_size=1)
        atexit.register(print, "at exit")
        print("the end")
        end_process()
        print("behind it")
        """
    )
    assert done.stdout.splitlines()[-2:] == ["the end", "at exit"]
