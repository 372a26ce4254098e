"""SyncBN where there is no GPU."""

import logging

from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import SyncBatchNorm


def sync_bn_to_bn(module: nn.Module) -> nn.Module:
    """Turn a model's SyncBN, which wants a GPU, into BN; the log says so.

    Args:
        module: The model, changed in place.

    Returns:
        The model.
    """
    count = sum(_is_sync_bn(part) for part in module.modules())
    if not count:
        return module
    print_log(
        f"SyncBN needs a GPU: {count} layers of it run as BN, each process with the statistics of its own "
        "images; the first one's are saved",
        logger="current",
        level=logging.WARNING,
    )
    return revert_sync_batchnorm(module)


def _is_sync_bn(module: nn.Module) -> bool:
    # mmcv's own is not torch's, and cannot be imported where mmcv has no operators
    return isinstance(module, SyncBatchNorm) or type(module).__name__ == "SyncBatchNorm"
