"""A Slurm cluster of two nodes on this machine, unpacked and run in a folder: nothing is installed."""

import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from helpers.processes import run, wait_until

#: Debian's and Ubuntu's; apt-get adds the libraries that this machine lacks
PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
#: addresses of this machine, which Slurm's clients can look up, as node names of our own could not be
NODES = "127.0.0.[1-2]"


class NoClusterError(Exception):
    """Why there is no cluster on this machine."""


@contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster with the partition ``debug``; gives the environment for Slurm's clients.

    Args:
        folder: An empty folder with a short path, for programs, state and logs.

    Raises:
        NoClusterError: It cannot be had here.
    """
    packages = folder / "packages"
    _unpack(packages)
    plugins = next(packages.glob("usr/lib/*/slurm-wlm"), None)
    libraries = [str(plugins), str(plugins.parent)] if plugins else []
    paths = [f"{packages}/usr/sbin", f"{packages}/usr/bin", *os.get_exec_path(), "/usr/sbin"]
    environment = dict(os.environ, PYTHON=sys.executable, PATH=":".join(paths), SLURM_CONF=str(folder / "slurm.conf"))
    environment["LD_LIBRARY_PATH"] = ":".join([*libraries, *filter(None, [os.environ.get("LD_LIBRARY_PATH")])])

    def program(name: str) -> str:
        # Debian's alternatives come with installing; the file itself has a suffix
        found = shutil.which(name, path=environment["PATH"]) or shutil.which(f"{name}-wlm", path=environment["PATH"])
        if found is None:
            raise NoClusterError(f"there is no program {name}")
        return found

    (folder / "key").write_bytes(os.urandom(64))
    (folder / "key").chmod(0o600)
    _write_settings(folder, plugins)
    files = {name: f"{folder}/munge.{name}" for name in ("socket", "pid", "log", "seed")}
    munged = [
        *(program("munged"), "--foreground", "--force", f"--key-file={folder}/key", f"--socket={files['socket']}"),
        *(f"--pid-file={files['pid']}", f"--log-file={files['log']}", f"--seed-file={files['seed']}"),
    ]
    slurmd = [program("slurmd"), "-D", "-d", program("slurmstepd")]
    with ExitStack() as stack:
        for command in (
            munged,
            [program("slurmctld"), "-D", "-c"],
            *([*slurmd, "-N", f"127.0.0.{node}"] for node in (1, 2)),
        ):
            output = stack.enter_context((folder / "daemons.log").open("ab"))
            process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
            stack.callback(_end, process)
        log = folder / "daemons.log"
        try:
            wait_until(lambda: idle_nodes(environment) == 2, 60, lambda: f"two nodes: {log.read_text()[-2000:]}")
        except AssertionError as error:
            raise NoClusterError(str(error)) from error
        try:
            yield environment
        finally:
            run("scancel", "--partition=debug", env=environment, returncode=None)
            wait_until(lambda: idle_nodes(environment) == 2, 60, lambda: f"the end of jobs: {log.read_text()[-2000:]}")


def idle_nodes(environment: dict[str, str]) -> int:
    """How many nodes run no job, and have ended all that their last one started."""
    told = run("sinfo", "--noheader", "--states=idle", "--format=%D", env=environment, returncode=None)
    return int(told.stdout) if told.stdout.strip() else 0


def _unpack(packages: Path) -> None:
    """Unpacks what of Slurm is not installed."""
    if shutil.which("apt-get") is None or shutil.which("dpkg") is None:
        raise NoClusterError("there is no apt-get, which brings Slurm")
    archives = packages / "archives"
    (archives / "partial").mkdir(parents=True)
    options = ["-o", f"Dir::Cache::archives={archives}", "-o", "Debug::NoLocking=1", "--no-install-recommends"]
    command = ("apt-get", "install", "--yes", "--download-only", *options, *PACKAGES)
    done = run(*command, returncode=None, timeout=100)
    if done.returncode:
        raise NoClusterError(f"apt-get does not bring Slurm (apt-get update may help): {done.stderr.strip()[-300:]}")
    for archive in archives.glob("*.deb"):
        run("dpkg", "-x", archive, packages)


def _write_settings(folder: Path, plugins: Path | None) -> None:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        control, first, second = (one.getsockname()[1] for one in sockets)
    host = socket.gethostname()
    user = run("id", "-un").stdout.strip()
    for name in ("state", "127.0.0.1", "127.0.0.2"):
        (folder / name).mkdir()
    lines = [
        *("ClusterName=local", f"SlurmctldHost={host}(127.0.0.1)", f"SlurmctldPort={control}"),
        *(f"SlurmUser={user}", f"SlurmdUser={user}", "AuthType=auth/munge", f"AuthInfo=socket={folder}/munge.socket"),
        *([f"PluginDir={plugins}"] if plugins else []),
        *("ProctrackType=proctrack/linuxproc", "TaskPlugin=task/none", "MpiDefault=none"),
        *("SelectType=select/cons_tres", "SelectTypeParameters=CR_Core", "ReturnToService=2"),
        "SchedulerParameters=sched_interval=1",
        *(f"StateSaveLocation={folder}/state", f"SlurmdSpoolDir={folder}/%n"),
        *(f"SlurmctldPidFile={folder}/slurmctld.pid", f"SlurmdPidFile={folder}/slurmd.%n.pid"),
        *(f"SlurmctldLogFile={folder}/slurmctld.log", f"SlurmdLogFile={folder}/slurmd.%n.log"),
        f"NodeName={NODES} NodeHostname={host} NodeAddr=127.0.0.1 Port={first},{second} CPUs={os.cpu_count()}",
        "PartitionName=debug Nodes=ALL Default=YES MaxTime=INFINITE State=UP",
    ]
    (folder / "slurm.conf").write_text("\n".join(lines) + "\n")


def _end(process: subprocess.Popen) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
