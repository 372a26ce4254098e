"""How much memory a process has used, and how much its device has."""

import os
import sys

import torch
from mmengine.device import get_device


def peak_memory() -> int:
    """The most that this process has used so far: of the GPU, without one of the machine; in bytes."""
    if get_device() == "cuda":
        return torch.cuda.max_memory_allocated()
    import resource  # not on every system

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def device_memory() -> tuple[int, str]:
    """All that the device has, in bytes, and its name."""
    if get_device() == "cuda":
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        return properties.total_memory, properties.name
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), "CPU"
