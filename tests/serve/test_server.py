"""The end of a server, and its beginning where it cannot begin."""

import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.processes import ON_CPU, started, wait_until
from helpers.serving import serving

from apla_mm.__main__ import main

pytestmark = pytest.mark.slow


def test_requests_in_flight_are_answered_before_it_ends_with_0(
    deltas: Path, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    with serving(deltas, tmp_path / "log.txt", "--max-wait-ms", "1500", "--max-batch", "8") as server:
        answers: list[Any] = []
        asking = [
            threading.Thread(target=lambda: answers.append(server.ask("POST", "/v1/predict/objects", make_picture())))
            for _ in range(2)
        ]
        for one in asking:
            one.start()
        while "apla_requests_active 2.0" not in server.ask("GET", "/metrics").body.decode():
            time.sleep(0.01)
        assert not answers
        server.process.send_signal(signal.SIGTERM)
        for one in asking:
            one.join(60)
        assert [answer.status for answer in answers] == [200, 200]
        assert server.process.wait(30) == 0
        assert server.log.read_text().rstrip().endswith("INFO stopped")
        with pytest.raises(OSError):
            server.ask("GET", "/health")


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_right_after_the_announcement_is_heard(sent: signal.Signals, tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    command = (sys.executable, "-m", "apla_mm", "serve", tmp_path / "tasks", "--port", "0")
    with started(*command, log=tmp_path / "log.txt", until="serving .* at http", env=ON_CPU) as process:
        process.send_signal(sent)
        assert process.wait(20) == 0


BUSY = """
import sys, time, torch
from apla_mm.__main__ import main
from apla_mm.serve import server

def busy():
    print("busy", flush=True)
    a = torch.randn(800, 800)
    while True:
        a = (a @ a).tanh()

make_app = server.make_app
server.make_app = lambda tasks, worker, *rest: (worker.call(busy), make_app(tasks, worker, *rest))[1]
main(["serve", sys.argv[1], "--port", "0", "--stop-seconds", "2"])
"""


def test_what_does_not_end_is_left_when_the_time_is_over(tmp_path: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "busy.py").write_text(BUSY)
    log = tmp_path / "log.txt"
    command = (sys.executable, tmp_path / "busy.py", tmp_path / "tasks")
    with started(*command, log=log, until="serving .* at http", env=ON_CPU) as process:
        wait_until(lambda: "busy" in log.read_text(), 60, log.read_text)
        process.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert process.wait(30) == 0, log.read_text()
        assert 1.5 < time.monotonic() - begin < 15
    assert "did not end within 2 s" in log.read_text() and log.read_text().rstrip().endswith("INFO stopped")


def test_requests_that_are_too_many_or_too_slow(
    deltas: Path, tmp_path: Path, make_picture: Callable[..., bytes]
) -> None:
    options = ("--max-requests", "2", "--upload-seconds", "1", "--stop-seconds", "1")
    with serving(deltas, tmp_path / "log.txt", *options) as server:
        head = b"POST /v1/predict/regions HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nabc"
        with socket.create_connection(server.address) as one, socket.create_connection(server.address) as two:
            for slow in (one, two):
                slow.sendall(head)
            while "apla_requests_active 2.0" not in server.ask("GET", "/metrics").body.decode():
                time.sleep(0.01)
            refused = server.ask("POST", "/v1/predict/regions", make_picture())
            assert refused.status == 429 and refused.headers["retry-after"] == "1"
            for slow in (one, two):
                answer = b""
                slow.settimeout(20)
                while part := slow.recv(4096):
                    answer += part
                assert answer.startswith(b"HTTP/1.1 408 ") and b"did not arrive within 1 s" in answer
        assert server.predict("regions", make_picture())["task"] == "regions"
        # a body that never comes does not hold up the end for longer than it may
        with socket.create_connection(server.address) as slow:
            slow.sendall(head)
            server.process.send_signal(signal.SIGINT)
            assert server.process.wait(20) == 0


def test_what_keeps_it_from_beginning_is_named(deltas: Path, tmp_path: Path) -> None:
    def error(*arguments: object) -> str:
        with pytest.raises(SystemExit) as ended:
            main(["serve", *map(str, arguments)])
        return str(ended.value.code)

    assert f"there is no folder '{tmp_path}/no'" in error(tmp_path / "no")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        told = error(deltas, "--port", taken.getsockname()[1])
    assert told.startswith("error: cannot listen at 127.0.0.1, port ") and "--port" in told
    none = tmp_path / "base-0123456789abcdef.safetensors"
    assert f"base '{none}': there is no such file" in error(deltas, "--port", "0", "--base", none)
    assert "device 'gpu' is not one of this machine" in error(deltas, "--port", "0", "--device", "gpu")
    assert error(deltas, "--port", "99999") == "2"
