"""Makes torchvision importable beside a torch that its compiled operators were not built for."""

import importlib.machinery
import importlib.util
import os
import sys

import torch

# Registrations end with the Library object that made them.
_library: torch.library.Library | None = None


def ensure_torchvision_ops() -> None:
    """Define the operators that ``import torchvision`` expects, where its own cannot be loaded.

    A torchvision built for CUDA cannot load its ``_C`` library beside a CPU-only torch. It tolerates that, but then
    registers fake kernels for the missing ``nms`` and ``qnms`` and dies with ``operator torchvision::nms does not
    exist``; so do timm and mmengine's ``Runner``, which import it. The bare schemas are enough for that. Calling such
    an operator still fails with torchvision's own message.

    Does nothing where torchvision is absent, already imported, or able to load its operators. Call it before the first
    import of torchvision.
    """
    global _library
    # On Windows the test would have to set up DLL search paths first, and both packages come as CPU builds there.
    if _library is not None or "torchvision" in sys.modules or os.name == "nt":
        return
    spec = importlib.util.find_spec("torchvision")
    if spec is None or not spec.submodule_search_locations or _compiled_ops_load(spec.submodule_search_locations[0]):
        return
    _library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):  # another package may have had to do the same
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def _compiled_ops_load(package_dir: str) -> bool:
    """Try to load torchvision's operators as ``torchvision.extension`` does; it may load them again without harm."""
    loader = (importlib.machinery.ExtensionFileLoader, importlib.machinery.EXTENSION_SUFFIXES)
    spec = importlib.machinery.FileFinder(package_dir, loader).find_spec("_C")
    if spec is None or spec.origin is None:
        return False
    try:
        torch.ops.load_library(spec.origin)
    except OSError:
        return False
    return True
