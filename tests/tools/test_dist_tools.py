"""tools/dist_train.sh and tools/dist_test.sh with real processes, and signals to them."""

import os
import re
import signal
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import ROOT
from helpers.processes import ON_CPU, Done, run
from helpers.small_run import (
    CONFIG,
    DIST_TEST,
    DIST_TRAIN,
    ENDLESS,
    TEST,
    TRAIN,
    miou,
    run_small,
    saved_iteration,
    started_small,
)

from apla_mm.loading.checkpoint_reader import read_checkpoint

pytestmark = pytest.mark.slow

train_or_test = partial(run_small, env=ON_CPU, timeout=600)


@pytest.mark.timeout(900)
def test_signal_to_every_process_saves_and_training_goes_on_from_there(data: str, tmp_path: Path) -> None:
    workers = [data, "train_dataloader.num_workers=1", "train_dataloader.persistent_workers=True"]
    log = tmp_path / "log.txt"
    with started_small(TRAIN, CONFIG, "--work-dir", tmp_path, options=[*ENDLESS, *workers], log=log) as process:
        os.killpg(process.pid, signal.SIGTERM)  # as Slurm does: the loader's worker too
        process.wait(300)
    output = log.read_text()
    assert process.returncode == 128 + signal.SIGTERM, output[-5000:]
    n = saved_iteration(tmp_path, output)
    assert n >= 3
    longer = [data, f"train_cfg.max_iters={n + 2}"]
    output = train_or_test(TRAIN, CONFIG, "--work-dir", tmp_path, "--resume", options=longer)
    assert re.findall(rf"Iter\(train\) \[ *(\d+)/{n + 2}\]", output) == [str(n + 1), str(n + 2)]
    assert read_checkpoint(tmp_path / f"iter_{n + 2}.pth")["meta"]["iter"] == n + 2


@pytest.mark.timeout(900)
def test_two_processes_train_are_stopped_go_on_and_score_as_one(data: str, tmp_path: Path) -> None:
    log = tmp_path / "log.txt"
    with started_small(DIST_TRAIN, CONFIG, 2, "--work-dir", tmp_path, options=[*ENDLESS, data], log=log) as process:
        process.terminate()  # torchrun, which ends its processes by the same signal
        process.wait(300)
    output = log.read_text()
    assert process.returncode != 0
    assert output.count("SIGTERM: saving after this iteration") == 2, output[-5000:]
    n = saved_iteration(tmp_path, output)

    longer = [data, f"train_cfg.max_iters={n + 2}", f"train_cfg.val_interval={n + 2}"]
    output = train_or_test(DIST_TRAIN, CONFIG, 2, "--work-dir", tmp_path, "--resume", options=longer)
    assert re.findall(rf"Iter\(train\) \[ *(\d+)/{n + 2}\]", output) == [str(n + 1), str(n + 2)]
    assert "GPU number: 2" in output and "backend': 'gloo'" in output
    assert re.search(r"first step: (\d+) of \1 trained tensors changed, 0 of \d+ frozen ones", output)
    assert len(re.findall(r"SyncBN needs a GPU: \d+ layers of it run as BN", output)) == 1

    checkpoint = tmp_path / f"iter_{n + 2}.pth"
    state = read_checkpoint(checkpoint)["state_dict"]
    assert all(torch.isfinite(tensor).all() for tensor in state.values())
    tested = train_or_test(DIST_TEST, CONFIG, checkpoint, 2, "--work-dir", tmp_path / "two", options=[data])
    alone = train_or_test(TEST, CONFIG, checkpoint, "--work-dir", tmp_path / "one", options=[data])
    assert miou(tested, each=2) == miou(alone, each=4)


def call(script: str, *arguments: str, **environment: str) -> Done:
    return run(ROOT / "tools" / script, *arguments, env=environment, returncode=None)


@pytest.mark.parametrize(
    ("script", "arguments", "usage"),
    [
        ("dist_train.sh", ["c.py"], "CONFIG GPUS [ARGUMENTS OF apla-mm train]"),
        ("dist_test.sh", ["c.py", "x.pth"], "CONFIG CHECKPOINT GPUS [ARGUMENTS OF apla-mm test]"),
        ("slurm_train.sh", ["debug", "job"], "PARTITION JOB_NAME CONFIG [ARGUMENTS OF apla-mm train]"),
        ("slurm_test.sh", ["debug", "job", "c.py"], "PARTITION JOB_NAME CONFIG CHECKPOINT [ARGUMENTS OF"),
        ("slurm_requeue.sbatch", [], "tools/slurm_requeue.sbatch CONFIG [ARGUMENTS OF apla-mm train]"),
    ],
)
def test_missing_arguments_are_answered_by_a_usage_line(script: str, arguments: list[str], usage: str) -> None:
    done = call(script, *arguments, SLURM_JOB_ID="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("usage: ") and usage in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("gpus", "environment", "message"),
    [
        ("two", {}, "GPUS must be a number of processes, at least 1, and is 'two'"),
        ("0", {}, "GPUS must be a number of processes, at least 1, and is '0'"),
        ("2", {"NNODES": "2"}, "NNODES=2: set MASTER_ADDR to the address of node 0, and NODE_RANK on each node"),
    ],
)
def test_wrong_settings_of_dist_train_are_named(gpus: str, environment: dict[str, str], message: str) -> None:
    done = call("dist_train.sh", "c.py", gpus, **environment)
    assert (done.returncode, done.stderr) == (2, f"{message}\n")


@pytest.mark.parametrize(
    ("environment", "meeting"),
    [
        ({}, "--standalone"),
        ({"PORT": "29501"}, "--nnodes=1 --node-rank=0 --master-addr=127.0.0.1 --master-port=29501"),
        (
            {"NNODES": "4", "NODE_RANK": "3", "MASTER_ADDR": "a"},
            "--nnodes=4 --node-rank=3 --master-addr=a --master-port=29500",
        ),
    ],
)
def test_dist_train_passes_on_where_processes_meet(environment: dict[str, str], meeting: str) -> None:
    done = call("dist_train.sh", "c.py", "3", "--amp", PYTHON="echo", **environment)
    assert done.stdout == (
        f"-m torch.distributed.run {meeting} --nproc-per-node=3 {ROOT}/tools/train.py c.py --amp --launcher pytorch\n"
    )


@pytest.mark.parametrize(
    ("environment", "tasks"),
    [
        ({}, "--gres=gpu:8 --ntasks=8 --ntasks-per-node=8 --cpus-per-task=5"),
        ({"GPUS": "4"}, "--gres=gpu:4 --ntasks=4 --ntasks-per-node=4 --cpus-per-task=5"),
        (
            {"GPUS": "16", "GPUS_PER_NODE": "4", "CPUS_PER_TASK": "2"},
            "--gres=gpu:4 --ntasks=16 --ntasks-per-node=4 --cpus-per-task=2",
        ),
        ({"GPUS_PER_NODE": "0"}, "--ntasks=1 --ntasks-per-node=1 --cpus-per-task=5"),
        (
            {"GPUS_PER_NODE": "0", "NTASKS": "4", "NTASKS_PER_NODE": "2"},
            "--ntasks=4 --ntasks-per-node=2 --cpus-per-task=5",
        ),
    ],
)
def test_slurm_scripts_ask_srun_for_nodes(environment: dict[str, str], tasks: str, tmp_path: Path) -> None:
    (tmp_path / "srun").write_text('#!/bin/sh\necho "$@"\n')
    (tmp_path / "srun").chmod(0o755)
    settings = dict(environment, PATH=f"{tmp_path}:{os.environ['PATH']}", PYTHON="python")
    start = f"--partition=gpu --job-name=pets {tasks} --kill-on-bad-exit=1"
    done = call("slurm_train.sh", "gpu", "pets", "c.py", "--amp", **settings)
    assert done.stdout == f"{start} python -u {ROOT}/tools/train.py c.py --amp --launcher slurm\n"
    settings.update(SRUN_ARGS="--time=1 -x n1", PY_ARGS="--tta --out x")
    done = call("slurm_test.sh", "gpu", "pets", "c.py", "x.pth", **settings)
    assert done.stdout == (
        f"{start} --time=1 -x n1 python -u {ROOT}/tools/test.py c.py x.pth --tta --out x --launcher slurm\n"
    )
