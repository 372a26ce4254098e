"""The folder of deltas: each file a task, looked at again and again."""

import logging
import re
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..delta import Delta, DeltaError, load_delta
from ..delta.base_file import base_folders, is_base_name
from ..text import printable
from .base import Base
from .task import Task, base_of
from .worker import Worker

_log = logging.getLogger("apla_mm.serve")
_SUFFIXES = (".delta.safetensors", ".safetensors")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_SETTLES = 5.0  #: seconds without a change, from which on a file that cannot be read is no longer one being written
_MOST_GONE = 100


@dataclass
class Entry:
    """What is known of a file.

    Attributes:
        name: The task's.
        file: The file's, without its folder.
        status: ``'served'``, ``'waiting'`` (not whole yet), ``'refused'`` or ``'gone'``.
        reason: Why it is not served, or not as the file is now.
        task: What is served of it.
    """

    name: str
    file: str
    status: str = "waiting"
    reason: str = ""
    task: Task | None = None
    signature: Any = None
    bases: Any = ()
    since: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """What a client is told."""
        told: dict[str, Any] = dict(name=printable(self.name), status=self.status, file=printable(self.file))
        if self.reason:
            told["reason"] = self.reason
        if self.task is not None:
            classes = [printable(one) for one in self.task.classes]
            told.update(kind=self.task.kind, classes=classes, bytes=self.task.nbytes)
        return told


class TaskFolder:
    """The tasks of a folder of deltas.

    A delta that appears is served, one that changes is read again, and one that goes away or is refused is told.
    A file that cannot be read yet is waited for.

    Args:
        folder: The folder. Base files in it are left out, as are hidden files.
        worker: What owns the models.
        device: Where they run.
        base: The base; None for that of the first delta, by name, that can be read.
        separate: Whether each task gets a base of its own: what sharing is compared with.
    """

    def __init__(
        self, folder: Path, worker: Worker, device: str, base: Base | None = None, separate: bool = False
    ) -> None:
        self._folder, self._worker, self._device, self._separate = folder, worker, device, separate
        self._entries: dict[str, Entry] = {}
        self._stopped = threading.Event()
        self._trouble = ""
        self.base = base
        self.is_read = False  #: whether all of the folder was looked at once

    @property
    def entries(self) -> list[Entry]:
        """What is known of each file, by name."""
        return [entry for _, entry in sorted(self._entries.items())]

    def task(self, name: str) -> Task | None:
        """The task of a name, if it is served."""
        entry = self._entries.get(name)
        return None if entry is None else entry.task

    def watch(self, seconds: float) -> threading.Thread:
        """Look at the folder now and every so many seconds, in a thread of its own."""

        def run() -> None:
            while not self._stopped.is_set():
                try:
                    self.look()
                except Exception:
                    _log.exception("the folder '%s' could not be looked at", self._folder)
                self._stopped.wait(seconds)

        thread = threading.Thread(target=run, name="folder", daemon=True)
        thread.start()
        return thread

    def stop(self) -> None:
        """End watching."""
        self._stopped.set()

    def look(self) -> None:
        """Look at the folder once; see the class."""
        try:
            files = sorted(path for path in self._folder.iterdir() if is_delta(path))
        except OSError as error:  # of a network, it may come back
            if str(error) != self._trouble:
                _log.error("the folder '%s' cannot be read, its tasks stay: %s", self._folder, error)
            self._trouble = str(error)
            return
        self._trouble = ""
        seen = set()
        for path in files:
            if self._stopped.is_set():
                return
            name = task_name(path)
            if name in seen:
                name = path.name
            seen.add(name)
            self._look_at(name, path)
        for entry in [entry for name, entry in self._entries.items() if name not in seen]:
            self._gone(entry)
        self.is_read = True

    def _look_at(self, name: str, path: Path) -> None:
        try:
            status = path.stat()
        except OSError:  # gone since it was listed
            return
        signature = (path.name, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        entry = self._entries.get(name)
        if entry is None or entry.status == "gone":
            entry = self._entries[name] = Entry(name, path.name)
        lacks_base = self.base is None and entry.task is None
        bases = tuple(_bases(path)) if lacks_base else entry.bases
        if (signature, bases) == (entry.signature, entry.bases):
            if entry.status == "refused" or not entry.reason:
                return
        else:
            entry.since = time.monotonic()
        entry.file, entry.signature, entry.bases = path.name, signature, bases
        if not _NAME.fullmatch(name) or name == path.name:
            cure = "rename it to NAME.delta.safetensors, of letters, digits, '.', '-' and '_', and as no other file"
            return self._refuse(entry, f"its name is none of a task, or another file's: {cure}")
        try:
            delta = load_delta(path)
            task = self._worker.call(lambda: self._made(name, delta)).result()
        except DeltaError as error:
            if time.monotonic() - entry.since >= _SETTLES:
                return self._refuse(entry, printable(error))
            entry.status = "waiting" if entry.task is None else entry.status
            entry.reason = f"it cannot be read yet: {printable(error)}"
            return None
        except Exception as error:  # a model fails to be built in any way
            return self._refuse(entry, printable(error if isinstance(error, ValueError) else repr(error)))
        entry.task, entry.status, entry.reason = task, "served", ""
        _log.info("task %s: served, %s of %d classes", name, task.kind, len(task.classes))
        return None

    def _made(self, name: str, delta: Delta) -> Task:
        if self._separate:
            return Task(name, delta, base_of(delta, self._device), self._device, separate=True)
        base = self.base or base_of(delta, self._device)
        task = Task(name, delta, base, self._device)
        if self.base is None:
            _log.info("base: %s, of task %s, %.1f MiB", base.name, name, base.nbytes / 2**20)
        self.base = base
        return task

    def _refuse(self, entry: Entry, reason: str) -> None:
        entry.task, entry.status, entry.reason = None, "refused", reason
        _log.error("task %s: refused: %s", printable(entry.name), reason)

    def _gone(self, entry: Entry) -> None:
        if entry.status == "gone":
            return
        entry.task, entry.status, entry.reason = None, "gone", "its file is not in the folder any more"
        _log.warning("task %s: %s", printable(entry.name), entry.reason)
        gone = [one.name for one in self.entries if one.status == "gone"]
        for name in gone[_MOST_GONE:]:
            self._entries.pop(name, None)


def _bases(path: Path) -> Iterator[tuple[str, int, int]]:
    """The base files that lie where a delta's is looked for: one that lacked its own is tried again when one comes."""
    for folder in base_folders(path):
        for base in sorted(folder.glob("base-*.safetensors")):
            with suppress(OSError):  # gone since it was listed
                status = base.stat()
                yield str(base), status.st_size, status.st_mtime_ns


def is_delta(path: Path) -> bool:
    """Whether a file may be a delta, by its name: no base file, and not hidden."""
    name = path.name
    return name.endswith(".safetensors") and not name.startswith(".") and not is_base_name(name) and path.is_file()


def task_name(path: Path) -> str:
    """The name of a delta's task."""
    return next(path.name.removesuffix(suffix) for suffix in _SUFFIXES if path.name.endswith(suffix))
