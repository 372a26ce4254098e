"""Files that are whole or not there."""

import os
import shutil
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend

from ..delta.atomic_file import write_atomic

ATOMIC = "apla_mm.atomic"  #: name of the backend, which no path chooses by itself


class AtomicLocalBackend(LocalBackend):
    """mmengine's files on a local disk, written beside their place and then renamed.

    A process that is killed, or a disk that is full, leaves the file that was there before; the file is on the disk,
    not in the system's memory, when writing returns.
    """

    def put(self, obj: bytes | memoryview, filepath: str | Path) -> None:
        """Write bytes to a file, making its folder if needed.

        Args:
            obj: What to write.
            filepath: Where.

        Raises:
            OSError: It cannot be written; what was there before is still there.
        """
        path = Path(filepath)
        if path.exists() and not path.is_file():  # a device or pipe
            super().put(obj, filepath)
            return
        try:
            write_atomic(obj, path)
        except OSError as error:
            raise OSError(
                error.errno, f"{os.strerror(error.errno or 0)}: not written{_room(obj, path.parent)}", str(path)
            ) from error

    def put_text(self, obj: str, filepath: str | Path, encoding: str = "utf-8") -> None:
        """Write text to a file; see :meth:`put`."""
        self.put(obj.encode(encoding), filepath)


def _room(obj: bytes | memoryview, folder: Path) -> str:
    try:
        free = shutil.disk_usage(folder).free
    except OSError:
        return ""
    return f"; it needs {memoryview(obj).nbytes / 2**20:.1f} MiB, and {free / 2**20:.1f} MiB are free"


register_backend(ATOMIC, AtomicLocalBackend)
