"""tools/slurm_*.sh and tools/slurm_requeue.sbatch under a real Slurm of two nodes, without GPUs."""

import json
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.data_sets import write_photos
from helpers.processes import ON_CPU, run, run_python, wait_for, wait_until
from helpers.slurm_cluster import NoClusterError, idle_nodes, slurm_cluster
from helpers.small_run import CONFIG, OPTIONS, miou, saved_iteration
from mmengine.config import Config

from apla_mm.loading.checkpoint_reader import read_checkpoint

# on a busy machine: a dozen processes start, each of which imports OpenMMLab
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("slurm")


@pytest.fixture(scope="session")
def data(folder: Path) -> str:
    return f"data_root={write_photos(folder / 'data')}"


@pytest.fixture(scope="session")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    (folder / "cluster").mkdir()
    with ExitStack() as stack:
        try:
            environment = stack.enter_context(slurm_cluster(folder / "cluster"))
        except NoClusterError as reason:
            pytest.skip(f"no Slurm: {reason}")
        yield {**environment, **ON_CPU}


@pytest.fixture
def call(environment: dict[str, str]) -> Callable[..., str]:
    """Runs a command; gives all it wrote."""

    def call(*command: object, **variables: str) -> str:
        return run(*command, env={**environment, **variables}, cwd=ROOT, timeout=600).output

    return call


def test_two_nodes_train_and_test_without_gpus(
    call: Callable[..., str], data: str, folder: Path, tmp_path: Path
) -> None:
    nodes = dict(GPUS_PER_NODE="0", NTASKS="2", CPUS_PER_TASK="1", SRUN_ARGS="--label")
    start = ["debug", "pets", CONFIG]
    options = ["--cfg-options", *OPTIONS, data]
    output = call(ROOT / "tools/slurm_train.sh", *start, "--work-dir", tmp_path, *options, **nodes)
    assert "GPU number: 2" in output and "Distributed launcher: pytorch" in output
    assert re.findall(r"^0: .*Iter\(train\) \[(\d)/4\]", output, re.MULTILINE) == ["1", "2", "3", "4"]
    assert not re.findall(r"^1: .*Iter\(train\)", output, re.MULTILINE)  # the second process's log is silent
    for node in (1, 2):
        assert "launch task" in (folder / f"cluster/slurmd.127.0.0.{node}.log").read_text()

    checkpoint = tmp_path / "iter_4.pth"
    assert read_checkpoint(checkpoint)["meta"]["iter"] == 4
    tested = call(ROOT / "tools/slurm_test.sh", *start, checkpoint, "--work-dir", tmp_path / "test", *options, **nodes)
    assert 0 < miou(tested, each=2) <= 100


def test_job_at_its_time_limit_saves_is_requeued_and_goes_on(
    call: Callable[..., str], environment: dict[str, str], data: str, tmp_path: Path
) -> None:
    config, log, work = (tmp_path / name for name in ("config.py", "log.txt", "work"))
    endless = f"_base_ = {str(CONFIG)!r}\ntrain_cfg = dict(max_iters=100000, val_interval=100000)\n"
    config.write_text(endless)
    options = [option for option in OPTIONS if "max_iters" not in option and "_interval" not in option]
    submitted = call(
        *("sbatch", "--parsable", "--partition=debug", "--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=1"),
        *("--time=10", f"--output={log}", ROOT / "tools/slurm_requeue.sbatch", config, "--work-dir", work),
        *("--cfg-options", *options, "default_hooks.checkpoint.interval=100000", data),
    )
    job = submitted.strip()

    def state() -> str:
        return call("scontrol", "show", "job", job)

    def over() -> bool:
        return re.search("JobState=(COMPLETED|FAILED|CANCELLED|TIMEOUT|NODE_FAIL)", state()) is not None

    wait_for(r"Iter\(train\) \[ *3/", log, over)
    call("scancel", "--batch", "--signal=USR1", job)  # what Slurm does two minutes before the limit
    wait_for(f"job {job} goes back into the queue", log, over)
    first = log.read_text()
    assert first.count("SIGUSR1: saving after this iteration") == 2
    n = saved_iteration(work, first)
    config.write_text(endless.replace("100000", str(n + 2)))
    wait_until(lambda: "JobState=PENDING" in state(), 60, state)
    assert "Restarts=1" in state() and "ExitCode=0:0" in state()
    # Slurm lets requeued jobs wait for two minutes; a node refuses one that is as old, in seconds, as what it has ended
    wait_until(lambda: idle_nodes(environment) == 2, 60, lambda: f"two idle nodes: {state()}")
    call("scontrol", "update", f"JobId={job}", "StartTime=now+2")
    wait_for(r"Iter\(val\) \[2/2\].* mIoU", log, over)
    second = log.read_text()[len(first) :]
    assert f"resumed epoch: 0, iter: {n}" in second
    assert re.findall(rf"Iter\(train\) \[ *(\d+)/{n + 2}\]", second) == [str(n + 1), str(n + 2)]
    wait_until(lambda: "JobState=COMPLETED" in state(), 60, state)
    assert "Restarts=1" in state()


def test_calls_of_a_comparison_run_as_jobs(environment: dict[str, str], tmp_path: Path) -> None:
    output = run_python(
        """
        import os, sys
        from pathlib import Path
        from apla_mm.compare.trials.launch import Launcher

        launcher = Launcher(Path(sys.argv[1]), "slurm", slurm=dict(partition="debug"))
        jobs = [launcher.submit(os.getenv, "SLURM_JOB_ID") for _ in range(2)]
        assert [job.result() for job in jobs] == [job.job_id for job in jobs]
        """,
        tmp_path,
        env=environment,
    ).output
    assert "Error" not in output


def test_trials_of_a_comparison_are_jobs_on_both_nodes(
    call: Callable[..., str], segmentation_config: Config, folder: Path, tmp_path: Path
) -> None:
    segmentation_config.dump(str(tmp_path / "config.py"))
    out = tmp_path / "out"
    command = (ROOT / "tools/compare.py", tmp_path / "config.py", "--methods", "apla:r=4", "--metric", "mIoU")
    options = ("--head-lr", 1e-3, "--trials", 2, "--rates", "apla:r=4=1e-4,1e-3", "--seeds", 1, "--work-dir", out)
    output = call(*command, *options, "--jobs", 2, "--on", "slurm", "--slurm", "partition=debug", "cpus_per_task=1")
    assert len(list(out.glob("search/*/*/*/trained.json"))) == 2
    (score,) = out.glob("final/*/*/*/scored.json")
    assert f"{json.loads(score.read_text())['mIoU']:.4g}" in (out / "report.md").read_text()
    assert output.count("seed0: mIoU") == 3
    jobs = {file.name.partition("_")[0] for file in (out / "jobs").glob("*_result.pkl")}
    logs = [(folder / f"cluster/slurmd.127.0.0.{node}.log").read_text() for node in (1, 2)]
    assert len(jobs) == 3
    assert all(any(re.search(rf"\b{job}\b", log) for log in logs) for job in jobs)
