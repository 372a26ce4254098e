"""apla-mm mask-costs: the case that is small enough for a test, both ways, each in its process."""

from helpers import ROOT
from helpers.processes import run

from apla_mm.commands.mask_costs import CASES

TOOL = ROOT / "tools/analysis_tools/mask_costs.py"


def test_both_ways_give_the_same_and_the_lean_one_holds_less() -> None:
    case = next(name for name in CASES if name.startswith("Mask R-CNN"))
    found = [run(TOOL, "--one", case, how, cwd=ROOT).stdout.splitlines()[-1].split() for how in ("plain", "lean")]
    (plain, _, right), (lean, _, value) = ([float(number) for number in line] for line in found)
    assert value == right > 0
    assert lean < plain / 2
