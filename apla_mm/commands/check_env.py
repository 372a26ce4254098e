"""Import what the toolkit needs and print the versions.

apla-mm check-env             # segmentation and detection
apla-mm check-env demo        # segmentation alone
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence

from . import command_parser

SEGMENTATION = ["torchvision", "timm", "mmengine", "mmcv", "mmseg.models", "mmseg.datasets", "mmseg.evaluation"]
DETECTION = ["mmcv.ops", "mmdet.models", "mmdet.datasets", "pycocotools.mask"]


def main(argv: Sequence[str] | None = None) -> None:
    parser = command_parser("check-env", __doc__)
    parser.add_argument("what", nargs="?", choices=["demo", "full", "upstream"], default="full", help="(default: full)")
    args = parser.parse_args(argv)
    for name in SEGMENTATION + ([] if args.what == "demo" else DETECTION):
        importlib.import_module(name)
    versions = [f"Python {sys.version.split()[0]}"]
    for name in ("torch", "torchvision", "timm", "mmengine", "mmcv", "mmseg", "mmdet"):
        if name in sys.modules:
            versions.append(f"{name} {sys.modules[name].__version__}")
        if name == "mmcv":
            compiled = importlib.util.find_spec("mmcv._ext") is not None
            versions[-1] += " (compiled operators)" if compiled else " (pure Python)"
    print(", ".join(versions))


if __name__ == "__main__":
    main()
