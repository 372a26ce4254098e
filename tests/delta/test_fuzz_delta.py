"""A part of what fuzz_delta.py does."""

from pathlib import Path

from helpers.fuzz_delta import EXPECTED, fuzz


def test_damaged_files_are_refused_or_read_whole(tmp_path: Path) -> None:
    counts = fuzz(1500, seed=1, folder=tmp_path)
    assert [line for line in counts if line not in EXPECTED] == []
    assert min(counts[kind] for kind in EXPECTED) > 50
