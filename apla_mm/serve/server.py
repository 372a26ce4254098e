"""A process that serves, from its first signal to its last."""

import logging
import signal
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from ..devices import find_device
from .app import make_app
from .base import Base
from .folder import TaskFolder
from .metrics import Metrics
from .requests.limits import Limits
from .worker import Worker

_log = logging.getLogger("apla_mm.serve")


@dataclass(frozen=True)
class Settings:
    """What a server is asked for.

    Attributes:
        folder: Of deltas.
        host: Address to listen at.
        port: 0 for any that is free.
        base: Base file; None for the first delta's.
        device: None for a GPU where there is one.
        poll: Seconds between two looks at the folder.
        stop_seconds: For requests in flight, once the server shall end.
        separate: Give each task a base of its own.
        limits: On requests.
    """

    folder: Path
    host: str = "127.0.0.1"
    port: int = 8000
    base: Path | None = None
    device: str | None = None
    poll: float = 2.0
    stop_seconds: float = 30.0
    separate: bool = False
    limits: Limits = field(default_factory=Limits)


def serve(settings: Settings) -> bool:
    """Serve until SIGTERM or SIGINT: what is in flight is answered first.

    Args:
        settings: What is asked for.

    Returns:
        Whether all threads have ended. Where one has not, the interpreter may not be taken down: it would be torn away
        from under a model that computes.

    Raises:
        FileNotFoundError: There is no such folder.
        OSError: The address cannot be listened at.
        DeltaError: The base file is none.
        ValueError: There is no such device.
    """
    if not settings.folder.is_dir():
        raise FileNotFoundError(f"there is no folder '{settings.folder}' (looked in {Path.cwd()})")
    device = find_device(settings.device)  # else each task would be refused for it
    base = None if settings.base is None else Base.of_file(settings.base, device)
    with _listen(settings.host, settings.port) as listening:
        return _serve(settings, listening, device, base)


def _serve(settings: Settings, listening: socket.socket, device: str, base: Base | None) -> bool:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    _log.setLevel(logging.INFO)
    logging.getLogger("python_multipart").setLevel(
        logging.ERROR
    )  # clients are told; a line for each would fill the log
    metrics = Metrics()
    worker = Worker(settings.limits, metrics)
    tasks = TaskFolder(settings.folder, worker, device, base, settings.separate)
    end = _End(tasks, worker, settings.stop_seconds)
    config = uvicorn.Config(
        make_app(tasks, worker, settings.limits, metrics, end.begin),
        log_config=None,
        access_log=False,
        lifespan="on",
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=max(1, round(settings.stop_seconds)),
    )
    server = _Server(config, end.told)
    for one in (signal.SIGINT, signal.SIGTERM):
        # also before uvicorn listens to signals, and when it raises them again once all is answered
        signal.signal(one, server.handle_exit)
    end.watching = tasks.watch(settings.poll)
    host, port = listening.getsockname()[:2]
    _log.info("serving '%s' at http://%s:%d", settings.folder, f"[{host}]" if ":" in host else host, port)
    server.run(sockets=[listening])
    _log.info("stopped")
    return end.is_complete


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, told: Callable[[], None]) -> None:
        super().__init__(config)
        self._told = told

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self._told()
        super().handle_exit(sig, frame)


class _End:
    """The end of the threads, within what is left of the time that began with the signal."""

    def __init__(self, tasks: TaskFolder, worker: Worker, seconds: float) -> None:
        self._tasks, self._worker, self._seconds = tasks, worker, seconds
        self._until: float | None = None
        self.watching: threading.Thread | None = None
        self.is_complete = False

    def told(self) -> None:
        if self._until is None:
            self._until = time.monotonic() + self._seconds

    def begin(self) -> None:
        self.told()
        self._tasks.stop()
        if self.watching is not None:
            self.watching.join(self._left())
        stopped = self._worker.stop(self._left())
        self.is_complete = stopped and not (self.watching and self.watching.is_alive())
        if not self.is_complete:
            _log.warning("what was being computed did not end within %g s", self._seconds)

    def _left(self) -> float:
        return max(0.0, (self._until or 0.0) - time.monotonic())


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server(address[:2], family=family, backlog=512)
    except (OSError, OverflowError) as error:
        raise OSError(f"cannot listen at {host}, port {port}: {error}; name another by --host and --port") from error
