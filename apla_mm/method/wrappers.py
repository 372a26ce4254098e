"""Models inside of others that only run them."""

import sys
from typing import Any

from torch import nn

#: torch's own, by name: importing the last one takes long
_WRAPPERS = ("DataParallel", "DistributedDataParallel", "FullyShardedDataParallel")


def unwrapped(model: Any) -> Any:
    """The model inside of DDP, FSDP, DataParallel, ``torch.compile`` and whatever mmengine knows as a wrapper."""
    while True:
        if is_wrapper(model):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


def is_wrapper(model: Any) -> bool:
    """Whether a model is another one's wrapper for several processes or devices."""
    mmengine = sys.modules.get("mmengine.model")  # where it was not imported, none of its wrappers is there
    return any(cls.__name__ in _WRAPPERS for cls in type(model).__mro__) or (
        mmengine is not None and mmengine.is_model_wrapper(model)
    )
