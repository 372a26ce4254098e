"""What serving costs: requests a second, latency, memory, and what malformed requests do to it."""

import contextlib
import http.client
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from ..text import table
from .folder import is_delta, task_name
from .malformed import malformed

MIB = 2**20
_LEAST = 2  #: answers of each task that are waited for
_STARTS = 300  #: seconds that a server may take


@dataclass(frozen=True)
class Load:
    """What was measured of one way to ask.

    Attributes:
        what: Is asked.
        clients: That ask at once, each its next request as soon as it has the answer to the last.
        requests: That were answered.
        rate: Of them in a second.
        p50: Median of their times, in seconds.
        p99: 99th percentile.
    """

    what: str
    clients: int
    requests: int
    rate: float
    p50: float
    p99: float


class RunningServer:
    """A server in a process of its own, on this machine alone.

    Args:
        folder: Of deltas.
        log: File that it writes to.
        options: Of ``apla-mm serve``.

    Raises:
        RuntimeError: It ends, or serves none of the tasks, within the time for it.
    """

    def __init__(self, folder: Path, log: Path, options: Sequence[str] = ()) -> None:
        command = [sys.executable, "-m", "apla_mm", "serve", str(folder), "--port", "0", *options]
        with log.open("w") as file:
            self._process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT)
        self._log = log
        try:
            self._address = self._wait()
        except BaseException:
            self._process.kill()
            self._process.wait()
            raise

    def _wait(self) -> tuple[str, int]:
        end = time.monotonic() + _STARTS
        address = None
        while time.monotonic() < end and self._process.poll() is None:
            if found := re.search(r"at (http://\S+)", self._log.read_text()):
                parts = urlsplit(found[1])
                address = self._address = (str(parts.hostname), parts.port or 80)
                status, body = self.ask("GET", "/ready")
                if status == 200 or b"no task is served" in body:
                    return address
            time.sleep(0.1)
        raise RuntimeError(f"the server did not begin within {_STARTS} s:\n{self._log.read_text()[-3000:]}")

    def connect(self) -> http.client.HTTPConnection:
        """A connection that stays open."""
        return http.client.HTTPConnection(*self._address, timeout=120)

    def ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        """One request on a connection of its own: status and body of the answer."""
        with contextlib.closing(self.connect()) as connection:
            connection.request(method, path, body or None, headers or {})
            answer = connection.getresponse()
            return answer.status, answer.read()

    def wait_for(self, task: str) -> None:
        """Wait until a task is served.

        Raises:
            RuntimeError: It is refused, or takes too long.
        """
        end = time.monotonic() + _STARTS
        told: dict[str, Any] = {}
        while time.monotonic() < end:
            listed = json.loads(self.ask("GET", "/v1/tasks")[1])["tasks"]
            told = next((one for one in listed if one["name"] == task), {})
            if told.get("status") == "served":
                return
            if told.get("status") == "refused":
                break
            time.sleep(0.05)
        raise RuntimeError(f"task {task!r} is not served: {told.get('reason', 'it takes too long')}")

    def memory(self) -> float:
        """Resident bytes of the process."""
        figures = self.ask("GET", "/metrics")[1].decode()
        (value,) = re.findall(r"^process_resident_memory_bytes (\S+)$", figures, re.MULTILINE)
        return float(value)

    def stop(self) -> int:
        """End it as the system would; gives the process's return code."""
        self._process.send_signal(signal.SIGTERM)
        try:
            return self._process.wait(60)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()


@contextlib.contextmanager
def running(folder: Path, options: Sequence[str] = ()) -> Iterator[RunningServer]:
    """A block with a server."""
    with tempfile.TemporaryDirectory() as logs:
        server = RunningServer(folder, Path(logs) / "log.txt", options)
        try:
            yield server
        finally:
            server.stop()


def measure_load(
    server: RunningServer, what: str, tasks: Sequence[str], image: bytes, clients: int, seconds: float
) -> Load:
    """Ask for so many seconds.

    Args:
        server: Whom.
        what: A name for it.
        tasks: Asked in turn by each client.
        image: What is uploaded.
        clients: That ask at once.
        seconds: For how long, or until each task has answered twice.

    Raises:
        RuntimeError: An answer is none of 200.
    """
    times: list[float] = []
    failures: list[str] = []
    end = time.monotonic() + seconds

    def client(first: int) -> None:
        with contextlib.closing(server.connect()) as connection:
            for i in itertools.count(first):
                begin = time.perf_counter()
                if failures or (time.monotonic() > end and len(times) >= _LEAST * len(tasks)):
                    return
                connection.request("POST", f"/v1/predict/{tasks[i % len(tasks)]}", image)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    failures.append(f"{answer.status}: {body[:300]!r}")
                times.append(time.perf_counter() - begin)

    for task in tasks:  # the first ones warm up
        server.ask("POST", f"/v1/predict/{task}", image)
    begin = time.monotonic()
    threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise RuntimeError(f"{what}: {failures[0]}")
    p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
    return Load(what, clients, len(times), len(times) / (time.monotonic() - begin), statistics.median(times), p99)


def measure_malformed(server: RunningServer, task: str, count: int) -> tuple[Counter[int], list[float]]:
    """Ask what is malformed.

    Args:
        server: Whom.
        task: One that it serves.
        count: Of requests.

    Returns:
        How many answers there were of each status, and the resident bytes before, after each tenth, and at the end.
    """
    statuses: Counter[int] = Counter()
    memory = [server.memory()]
    for i, request in enumerate(malformed(task, count)):
        statuses[server.ask(*request)[0]] += 1
        if (i + 1) % max(1, count // 10) == 0:
            memory.append(server.memory())
    return statuses, memory


def run_load_test(
    folder: Path,
    tasks: Sequence[str],
    image: bytes,
    clients: Sequence[int],
    seconds: float,
    counts: Sequence[int],
    count_malformed: int,
) -> dict[str, Any]:
    """Measure all, print it as it comes, and give it as values that JSON has.

    Args:
        folder: Of deltas.
        tasks: Two of them; none for the first two by name.
        image: What is uploaded.
        clients: That ask at once.
        seconds: For each row.
        counts: Of tasks in memory, made of the two in turn.
        count_malformed: Of malformed requests.

    Raises:
        RuntimeError: A task is not served, or an answer is not what it must be.
        ValueError: There are no such files.
    """
    files = dict(sorted((task_name(path), path) for path in folder.iterdir() if is_delta(path)))
    tasks = list(tasks or files)[:2]
    if len(tasks) < 2 or not set(tasks) <= files.keys():
        raise ValueError(f"two deltas are needed of those in '{folder}', which are {list(files)}")
    loads: list[Load] = []
    told: dict[str, Any] = dict(cpus=os.cpu_count(), memory=[dict(tasks=count) for count in sorted({*counts})])
    for kind, options in (("shared", ()), ("separate", ("--separate",))):
        with tempfile.TemporaryDirectory() as name, running(Path(name), (*options, "--poll", "0.2")) as server:
            there: list[str] = []
            for count in sorted({2, *counts}):
                while len(there) < count:
                    like = tasks[len(there) % 2]
                    there.append(like if len(there) < 2 else f"{like}-{len(there)}")
                    # a link: the base is found where it leads to
                    (Path(name) / f"{there[-1]}.safetensors").symlink_to(files[like].resolve())
                    server.wait_for(there[-1])
                for task in there:
                    server.ask("POST", f"/v1/predict/{task}", image)
                for row in told["memory"]:
                    if row["tasks"] == count:
                        row[kind] = server.memory()
            both = "both in turn" if kind == "shared" else "both in turn, two models of their own"
            asked = {task: [task] for task in tasks} if kind == "shared" else {}
            for many in clients:
                for what, turn in {**asked, both: tasks}.items():
                    loads.append(measure_load(server, what, turn, image, many, seconds))
                    print(format_loads(loads[-1:]).splitlines()[-1], flush=True)
            if kind == "shared":
                told["malformed"], told["malformed_memory"] = measure_malformed(server, tasks[0], count_malformed)
    told["loads"] = [asdict(load) for load in loads]
    print(f"\n{format_loads(loads)}\n\n{format_memory(told['memory'])}\n")
    statuses = ", ".join(f"{count} of {status}" for status, count in sorted(told["malformed"].items()))
    memory = ", ".join(f"{value / MIB:.0f}" for value in told["malformed_memory"])
    print(f"{count_malformed} malformed requests: {statuses}; resident MiB from first to last: {memory}")
    return told


def format_loads(loads: Sequence[Load]) -> str:
    """A table in Markdown."""
    head = ("task", "clients", "requests", "requests/s", "p50, ms", "p99, ms")
    rows = [
        (
            one.what,
            str(one.clients),
            str(one.requests),
            f"{one.rate:.1f}",
            f"{1e3 * one.p50:.0f}",
            f"{1e3 * one.p99:.0f}",
        )
        for one in sorted(loads, key=lambda one: one.clients)
    ]
    return table(head, rows, markdown=True)


def format_memory(memory: Sequence[dict[str, Any]]) -> str:
    """A table in Markdown."""
    head = ("tasks", "on one base, MiB", "models of their own, MiB")
    rows = [(str(one["tasks"]), f"{one['shared'] / MIB:.0f}", f"{one['separate'] / MIB:.0f}") for one in memory]
    return table(head, rows, markdown=True)
