"""Make torchvision importable beside a torch that its compiled operators were not built for.

PyPI's torchvision is built for CUDA and cannot load its operators beside a CPU-only torch. It tolerates that, but then
describes operators that are not there and dies with "operator torchvision::nms does not exist"; so does all that
imports it: timm, mmengine's Runner. This adds their bare schemas to the installed torchvision, which is enough for the
import. A call of such an operator still fails, with torchvision's own message.

tools/setup_env.sh runs it in the project's environment; by hand: apla-mm repair-torchvision
"""

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from . import command_parser

MARK = "# added by apla-mm repair-torchvision"
REPAIR = f"""
{MARK}
if not _has_ops():
    _schemas = torch.library.Library("torchvision", "FRAGMENT")
    for _name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, _name):
            _schemas.define(f"{{_name}}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
"""


def import_error() -> str:
    """The last line of what ``import torchvision`` says in a fresh process; empty if it imports."""
    done = subprocess.run([sys.executable, "-c", "import torchvision"], capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["it failed"])[-1] if done.returncode else ""


def main(argv: Sequence[str] | None = None) -> None:
    command_parser("repair-torchvision", __doc__).parse_args(argv)
    error = import_error()
    if not error:
        return
    if "torchvision::" not in error:  # another ailment
        raise SystemExit(f"torchvision cannot be imported: {error}")
    spec = importlib.util.find_spec("torchvision")
    assert spec is not None and spec.submodule_search_locations
    file = Path(spec.submodule_search_locations[0], "extension.py")
    if not file.is_relative_to(sys.prefix):
        raise SystemExit(f"torchvision cannot be imported ({error}), and lies outside of this environment: '{file}'")
    file.write_text(file.read_text().split(f"\n{MARK}")[0] + REPAIR)
    if error := import_error():
        raise SystemExit(f"torchvision cannot be imported: {error}")
    print(f"repaired '{file}'")


if __name__ == "__main__":
    main()
