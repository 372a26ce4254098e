"""apla-mm delta-costs as a process of its own."""

import json
from pathlib import Path

from helpers import ROOT
from helpers.processes import run


def test_a_small_vit(tmp_path: Path) -> None:
    command = (ROOT / "tools/analysis_tools/delta_costs.py", "--models", "vit_tiny_patch16_224")
    options = ("--r", "8", "full", "--rounds", "1", "--swaps", "20", "--json", tmp_path / "new/costs.json")
    done = run(*command, *options, cwd=ROOT)
    lines = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert len(lines) == 4 and lines[0].split("|")[1].strip() == "model"

    written = json.loads((tmp_path / "new/costs.json").read_text())
    for row, r in zip(written["rows"], (8, 192), strict=True):
        head = 150 * (192 + 1)
        trained = 12 * (r * (192 + 1)) + head
        # the rest is channels, header and names
        assert 4 * trained < row["delta_bytes"] < 4 * trained + 12 * 8 * 8 + 40_000
        whole = 4 * (5_717_416 - 193_000 + head)
        assert whole < row["checkpoint_bytes"] < 1.01 * whole
        for name in ("save", "fingerprint", "load", "merge", "swap_median", "swap_p99"):
            assert 0 < row[name] < 60
        assert row["swap_median"] <= row["swap_p99"]
    assert written["rows"][0]["delta_bytes"] < written["rows"][1]["delta_bytes"]
