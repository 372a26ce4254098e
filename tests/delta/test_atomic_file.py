"""Files that are whole or not there."""

import os
from pathlib import Path

import pytest

from apla_mm.delta.atomic_file import write_atomic


def test_the_file_itself_is_never_written_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    before = path.stat()

    def fail(source: Path, target: Path) -> None:
        assert Path(source).parent == tmp_path and Path(source).read_bytes() == b"new" and Path(target) == path
        raise OSError("no")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no"):
        write_atomic(b"new", path)
    after = path.stat()
    assert path.read_bytes() == b"old" and (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["n" * 255, "ü" * 127, "a." + "b" * 253, ".pth"])
def test_any_name_that_a_file_can_have(tmp_path: Path, name: str) -> None:
    write_atomic(b"one", tmp_path / name)
    write_atomic(b"two", tmp_path / name)
    assert list(tmp_path.iterdir()) == [tmp_path / name] and (tmp_path / name).read_bytes() == b"two"


def test_the_name_aside_is_new_each_time_and_ends_as_leftovers_are_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: list[str] = []
    replace = os.replace
    monkeypatch.setattr(os, "replace", lambda one, two: (names.append(Path(one).name), replace(one, two)))
    for _ in range(2):
        write_atomic(b"x", tmp_path / f"{'long' * 40}_iter_4.pth")
    assert len(set(names)) == 2 and all(Path(name).match(".*.pth.*.part") for name in names)


@pytest.mark.parametrize("umask", [0o022, 0o077])
def test_modes_are_those_of_the_umask_or_of_the_old_file(tmp_path: Path, umask: int) -> None:
    path, before = tmp_path / "file", os.umask(umask)
    try:
        write_atomic(b"new", path)
        assert path.stat().st_mode & 0o777 == 0o666 & ~umask
        path.chmod(0o640)
        write_atomic(b"newer", path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o640


def test_what_cannot_be_written_is_told_by_its_own_name(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path, kind in ((tmp_path / "file/x", FileExistsError), (tmp_path / "folder", IsADirectoryError)):
        with pytest.raises(kind, match=rf"cannot be written \(.*\): '{path}'$"):
            write_atomic(b"x", path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["file", "folder"]
