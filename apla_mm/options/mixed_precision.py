"""Mixed precision, switched on in a config."""

import torch
from mmengine.config import Config


def enable_mixed_precision(cfg: Config) -> None:
    """Have a config train in bfloat16, or where the GPU has none, in float16 with a scaled loss; in place.

    Raises:
        ValueError: Its optimizer wrapper is of another kind.
    """
    wrapper = cfg.optim_wrapper
    if wrapper.type not in ("OptimWrapper", "AmpOptimWrapper"):
        raise ValueError(f"mixed precision needs an optim_wrapper of type OptimWrapper, and it is {wrapper.type}")
    cuda = torch.cuda.is_available()
    if cuda and (wrapper.get("dtype") == "float16" or not torch.cuda.is_bf16_supported()):
        wrapper.type, wrapper.dtype = "AmpOptimWrapper", "float16"
        wrapper.setdefault("loss_scale", "dynamic")
        return
    wrapper.type = "BFloat16OptimWrapper"
    for key in ("dtype", "loss_scale"):
        wrapper.pop(key, None)
    if cfg.get("default_scope") == "mmdet":
        wrapper.parts = ["backbone", "neck"]
