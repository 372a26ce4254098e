"""tools/analysis_tools/mask_costs.py: one of its cases, small enough for a test, both ways."""

from helpers import ROOT
from helpers.tools import load_tool

TOOL = ROOT / "tools/analysis_tools/mask_costs.py"


def test_both_ways_give_the_same_and_the_lean_one_holds_less() -> None:
    tool = load_tool(TOOL)
    case = next(name for name in tool.CASES if name.startswith("Mask R-CNN"))
    plain, lean = (tool.mask_targets(way)() for way in (False, True))
    assert plain == lean > 0
    megabytes, seconds, value = tool.measure(case, True).split()
    assert float(megabytes) >= 0 and float(seconds) > 0 and float(value) == float(plain)
