"""apla-mm serve as a process of its own, and what asks it."""

import http.client
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from helpers.processes import ON_CPU, started, wait_until


@dataclass(frozen=True)
class Answer:
    """A server's answer."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Server:
    """A server that runs.

    Attributes:
        url: Where.
        process: Its process.
        log: What it writes.
    """

    url: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        assert parts.hostname is not None and parts.port is not None
        return parts.hostname, parts.port

    def ask(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> Answer:
        """One request on a connection of its own."""
        connection = http.client.HTTPConnection(*self.address, timeout=120)
        try:
            connection.request(method, path, body, dict(headers or {}))
            response = connection.getresponse()
            names = {name.lower(): value for name, value in response.getheaders()}
            return Answer(response.status, names, response.read())
        finally:
            connection.close()

    def tasks(self) -> dict[str, Any]:
        return {one["name"]: one for one in self.ask("GET", "/v1/tasks").json["tasks"]}

    def predict(self, task: str, data: bytes, query: str = "") -> Any:
        answer = self.ask("POST", f"/v1/predict/{task}{query}", data)
        assert answer.status == 200, (answer.status, answer.body[:1000])
        return answer.json if answer.headers["content-type"] == "application/json" else answer.body


@contextmanager
def serving(folder: Path, log: Path, *options: object) -> Iterator[Server]:
    """A server of a folder of deltas at a free port, once it has read the folder."""
    command = (sys.executable, "-m", "apla_mm", "serve", folder, "--port", "0", "--poll", "0.1", *options)
    with started(*command, log=log, until="serving .* at http", env=ON_CPU) as process:
        server = Server(re.search(r"serving .* at (http://\S+)", log.read_text())[1], process, log)
        ready = "the folder of tasks is being read"
        wait_until(lambda: ready not in server.ask("GET", "/ready").body.decode(), 120, log.read_text)
        yield server


def multipart(*parts: tuple[str, str | None, bytes], boundary: str = "b0undary") -> tuple[bytes, dict[str, str]]:
    """A body of parts, each a name, a file's name or None, and content; and its header."""
    body = b""
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        body += (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode() + content + b"\r\n"
        )
    return body + f"--{boundary}--\r\n".encode(), {"Content-Type": f"multipart/form-data; boundary={boundary}"}
