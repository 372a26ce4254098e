import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import apla_mm  # noqa: F401  registers the backend

# isort: split
import pytest
from mmengine.fileio import get_file_backend, put, put_text

from apla_mm.engine.file_backend import AtomicLocalBackend


def test_mmengines_writers_use_it(tmp_path: Path) -> None:
    assert isinstance(get_file_backend(tmp_path / "file"), AtomicLocalBackend)
    assert isinstance(get_file_backend(backend_args=dict(backend="local")), AtomicLocalBackend)
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


def test_processes_that_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    script = f"import apla_mm; from mmengine.fileio import put; [put(bytes(2**20), {str(path)!r}) for _ in range(40)]"
    writers = [subprocess.Popen([sys.executable, "-c", script], stderr=subprocess.PIPE) for _ in range(2)]
    assert [writer.communicate()[1][-500:] for writer in writers if writer.wait()] == []
    assert list(tmp_path.iterdir()) == [path]


WRITER = """
import sys
from mmengine.fileio import put
import apla_mm
for i in range(10**9):
    put(bytes([i % 256]) * 2**24, sys.argv[1])
    if i == 2:
        print("writing", flush=True)
"""


def test_file_is_whole_whenever_its_writer_is_killed(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    for kill in range(3):
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        assert writer.stdout.readline() == b"writing\n"
        time.sleep(0.05 + 0.013 * kill)
        os.kill(writer.pid, signal.SIGKILL)
        writer.communicate()
        content = path.read_bytes()
        assert len(content) == 2**24 and content == content[:1] * 2**24
