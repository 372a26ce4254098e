import errno
import os
import resource
import stat
import subprocess
import sys
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path

import mmengine.fileio
import pytest
from helpers.processes import started, wait_until
from mmengine.fileio import LocalBackend, get_file_backend

from apla_mm.runs.file_backend import ATOMIC, AtomicLocalBackend

pytestmark = pytest.mark.slow

put = partial(mmengine.fileio.put, backend_args=dict(backend=ATOMIC))
put_text = partial(mmengine.fileio.put_text, backend_args=dict(backend=ATOMIC))


def test_mmengines_writers_use_it_where_they_are_asked_to(tmp_path: Path) -> None:
    assert isinstance(get_file_backend(tmp_path / "file", backend_args=dict(backend=ATOMIC)), AtomicLocalBackend)
    for arguments in (dict(uri=tmp_path / "file"), dict(backend_args=dict(backend="local"))):
        assert type(get_file_backend(**arguments)) is LocalBackend
    put(b"bytes", str(tmp_path / "new/folder/one.bin"))
    put_text("Wörter", tmp_path / "two.txt")
    put_text("mehr", tmp_path / "two.txt")
    assert (tmp_path / "new/folder/one.bin").read_bytes() == b"bytes"
    assert (tmp_path / "two.txt").read_text(encoding="utf-8") == "mehr"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["folder", "new", "one.bin", "two.txt"]


def test_disk_that_is_full_leaves_the_old_file_and_says_how_much_is_missing(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    put(b"old", path)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, before[1]))
    try:
        with pytest.raises(OSError, match=r"not written; it needs 4\.0 MiB, and [\d.]+ MiB are free.*file\.bin"):
            put(bytes(4 * 2**20), path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match=f"not written.*{tmp_path}/file/below"):
        put(b"bytes", tmp_path / "file/below")


def test_links_and_modes_stay_and_pipes_are_written_to(tmp_path: Path) -> None:
    target, link, pipe = (tmp_path / name for name in ("target", "link", "pipe"))
    target.write_bytes(b"old")
    target.chmod(0o604)
    link.symlink_to(target)
    put(b"new", link)
    assert link.is_symlink() and target.read_bytes() == b"new" and target.stat().st_mode & 0o777 == 0o604
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE)
    put(b"through", pipe)
    assert reader.communicate()[0] == b"through" and pipe.is_fifo()


def test_file_system_that_cannot_sync_folders_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def files_only(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not here")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", files_only)
    put(b"bytes", tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"bytes"


PAIR = """
import sys, time
from pathlib import Path
from mmengine.fileio import put
import apla_mm
print("ready", flush=True)
sys.stdin.readline()
for _ in range(100):
    put(bytes(2**18), sys.argv[1], backend_args=dict(backend="apla_mm.atomic"))
"""


def test_processes_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path, logs = tmp_path / "new/file.bin", [tmp_path / f"{i}.txt" for i in range(2)]
    with ExitStack() as stack:
        command = (sys.executable, "-c", PAIR, path)
        writers = [stack.enter_context(started(*command, log=log, until="ready")) for log in logs]
        for writer in writers:
            print("go", file=writer.stdin, flush=True)
        assert [writer.wait(120) for writer in writers] == [0, 0]
    assert [log.read_text() for log in logs] == ["ready\n"] * 2
    assert list(path.parent.iterdir()) == [path]


WRITER = """
import sys
from mmengine.fileio import put
import apla_mm
for i in range(10**9):
    put(bytes([i % 256]) * 2**24, sys.argv[1], backend_args=dict(backend="apla_mm.atomic"))
    if i == 2:
        print("writing", flush=True)
"""


def size_of_part(folder: Path) -> int:
    """How much is written of a file that is being written; -1 where none is."""
    with suppress(FileNotFoundError):
        return max((part.stat().st_size for part in folder.glob(".*.part")), default=-1)
    return -1


def test_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "new/file.bin"
    for kill in range(3):
        with started(sys.executable, "-c", WRITER, path, log=tmp_path / f"{kill}.txt", until="writing"):
            size = kill * 2**23  # it has begun, is midway, or waits for the disk
            wait_until(lambda size=size: size_of_part(path.parent) >= size, 60, lambda: "a file to be written")
        for part in path.parent.glob(".*.part"):
            part.unlink()
        content = path.read_bytes()
        assert len(content) == 2**24 and content == content[:1] * 2**24
