"""Imports what the toolkit needs and prints the versions: ``python tools/check_env.py demo|full|upstream``."""

import importlib
import importlib.util
import sys

SEGMENTATION = ["torchvision", "timm", "mmengine", "mmcv", "mmseg.models", "mmseg.datasets", "mmseg.evaluation"]
DETECTION = ["mmcv.ops", "mmdet.models", "mmdet.datasets", "pycocotools.mask"]

for name in SEGMENTATION + ([] if sys.argv[1:] == ["demo"] else DETECTION):
    importlib.import_module(name)

versions = [f"Python {sys.version.split()[0]}"]
for name in ("torch", "torchvision", "timm", "mmengine", "mmcv", "mmseg", "mmdet"):
    if name in sys.modules:
        versions.append(f"{name} {sys.modules[name].__version__}")
    if name == "mmcv":
        versions[-1] += " (pure Python)" if importlib.util.find_spec("mmcv._ext") is None else " (compiled operators)"
print(", ".join(versions))
