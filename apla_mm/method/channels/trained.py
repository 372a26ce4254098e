"""Which channels of an adapted model train."""

import hashlib
import json

from torch import nn

from ..partial_linear import PartialLinear


def channels_of(model: nn.Module) -> dict[str, list[int]]:
    """The output channels that train, ascending, by the name of their projection.

    Args:
        model: An adapted model, not its DDP wrapper: names are those of ``model.named_modules()``.

    Returns:
        The lists. Projections that train in full are plain layers and not listed.
    """
    return {
        name: list(module.trained.chosen) for name, module in model.named_modules() if isinstance(module, PartialLinear)
    }


def channels_digest(model: nn.Module) -> str:
    """SHA-256 of :func:`channels_of`; the order of the model's modules does not count."""
    return hashlib.sha256(json.dumps(channels_of(model), sort_keys=True).encode()).hexdigest()
