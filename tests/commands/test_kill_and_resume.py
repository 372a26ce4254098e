"""Training that is killed with SIGKILL, by real processes; kill_and_resume.py does it at many random moments."""

from pathlib import Path

import pytest
from helpers.data_sets import write_photos
from helpers.kill_and_resume import compare, finish, kill_after, unreadable

pytestmark = pytest.mark.slow


def test_killed_run_ends_as_one_that_was_not(tmp_path: Path) -> None:
    data = f"data_root={write_photos(tmp_path / 'data')}"
    finish(tmp_path / "whole", data, processes=1)
    killed = tmp_path / "killed"
    kill_after(killed, data, processes=1, iteration=10, seconds=0.05)
    assert not (killed / "iter_24.pth").exists()
    assert unreadable(killed) == []
    finish(killed, data, processes=1)
    assert compare(killed, tmp_path / "whole") == []
