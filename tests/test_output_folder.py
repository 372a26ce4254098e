import os
from pathlib import Path

import pytest

from apla_mm.output_folder import make_output_folder


def test_a_folder_is_made_and_one_that_is_there_stays(tmp_path: Path) -> None:
    assert make_output_folder(tmp_path / "a/b") == "" and (tmp_path / "a/b").is_dir()
    (tmp_path / "a/b/file").write_text("x")
    assert make_output_folder(tmp_path / "a/b") == "" and (tmp_path / "a/b/file").read_text() == "x"


def test_why_nothing_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert make_output_folder(tmp_path / "file/in") == f"'{tmp_path / 'file/in'}': Not a directory"
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # a superuser may write everywhere
    assert make_output_folder(tmp_path / "new") == f"'{tmp_path / 'new'}' is not writable"
