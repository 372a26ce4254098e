"""Files that are whole or not there."""

import os
import secrets
import shutil
from contextlib import suppress
from pathlib import Path

SUFFIX = ".part"  #: of a file that is being written, or whose writer was killed


def write_atomic(data: bytes | memoryview, path: str | Path) -> None:
    """Write a file beside its place and rename it, making its folder if needed. Links and modes stay.

    A process that is killed, or a disk that is full, leaves the file that was there before; the file is on the disk,
    not in the system's memory, when this returns.

    Args:
        data: What to write.
        path: Where.

    Raises:
        OSError: It cannot be written; what was there before is still there.
    """
    path = Path(os.path.realpath(path))
    # a name that nothing has, not even a link; of long names the end, by which what is left over is found
    aside = path.with_name(f".{path.name[-50:]}.{secrets.token_hex(8)}{SUFFIX}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            shutil.copymode(path, aside)
        os.replace(aside, path)
    except BaseException as error:
        with suppress(OSError):
            aside.unlink()
        if isinstance(error, OSError) and error.errno is not None:  # of the file aside, or of a folder above
            raise OSError(error.errno, f"cannot be written ({error.strerror})", str(path)) from error
        raise
    with suppress(OSError):  # which some file systems cannot
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
