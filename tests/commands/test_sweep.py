"""The sweep of what ships, on a few models of each outcome."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT
from helpers.processes import run

pytestmark = pytest.mark.slow
TOOL = ROOT / "tools/analysis_tools/sweep_configs.py"


def test_outcomes_of_configs_and_of_timm(tmp_path: Path) -> None:
    only = (
        r"^segformer/.*b0.*512x512|^san/.*b16_coco|^fcn/fcn_r50-d8_4xb2-40k_c|"
        r"^csatv2$|^convit_tiny|^halonet26t$|^resnet18$"
    )
    output = run(TOOL, "mmseg", "timm", "--only", only, "--json", tmp_path / "s.json").output
    found = json.loads((tmp_path / "s.json").read_text())
    outcomes = {(package, name): o["outcome"] for package, each in found.items() for o in each for name in o["configs"]}
    assert {outcome for (package, name), outcome in outcomes.items() if name.startswith("segformer")} == {"adapted"}
    assert {outcome for (package, name), outcome in outcomes.items() if name.startswith("san")} == {"refused"}
    assert {outcome for (package, name), outcome in outcomes.items() if name.startswith("fcn")} == {"no attention"}
    timm = {name: outcome for (package, name), outcome in outcomes.items() if package == "timm"}
    assert timm == dict(csatv2="adapted", convit_tiny="adapted", halonet26t="refused", resnet18="no attention")
    assert "the model has no part 'backbone'; it has data_preprocessor, image_encoder" in output
    (segformer,) = [o for o in found["mmseg"] if o["outcome"] == "adapted"]
    assert segformer["projections"] == 8  # two blocks in each of four stages


def test_no_hub_is_asked() -> None:
    """Whether one may be is read once, when timm is imported."""
    code = "import apla_mm.commands.sweep, huggingface_hub.constants as hub; print(hub.HF_HUB_OFFLINE)"
    environment = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "True", done.stderr
