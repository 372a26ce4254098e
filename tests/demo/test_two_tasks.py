"""demo/two_tasks.py as processes of their own, with a small ViT."""

import os
import re
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.processes import run

pytestmark = pytest.mark.slow

DEMO = (ROOT / "demo/two_tasks.py", "--model", "vit_tiny_patch16_224", "--swaps", "10")


@pytest.mark.slow  # 20 s
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads the process's memory there")
def test_both_tasks_are_those_of_models_of_their_own(tmp_path: Path) -> None:
    first = run(*DEMO, "--r", "full", "--save", tmp_path, cwd=ROOT).stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["detection.safetensors", "segmentation.safetensors"]
    deltas = ("--seg", tmp_path / "segmentation.safetensors", "--det", tmp_path / "detection.safetensors")
    again = run(*DEMO, *deltas, cwd=ROOT).stdout
    for text in (first, again):
        assert re.search(r"segmentation: a label map of 416 x 640 with \d+ classes, equal to the bit to", text)
        assert re.search(r"detection: \d+ boxes, .*, equal to the bit to", text)
        two, one = (
            int(re.search(rf"\| {what} +\| +(\d+)", text)[1]) for what in ("two models", "two tasks on one backbone")
        )
        # the 5.5 million float32 of one ViT-Ti, less the deltas' 12 projections of 193 x 192 for two tasks
        assert 16 <= two - one <= 19
        assert len(re.findall(r"^\| (?:8|64|full) ", text, re.M)) == 3
    assert first.splitlines()[:2] == again.splitlines()[:2]
