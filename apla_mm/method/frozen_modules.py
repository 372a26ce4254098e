"""Modules of which nothing trains, and which run as in evaluation."""

from torch import nn


def frozen_modules(part: nn.Module, drop_path: bool) -> list[nn.Module]:
    """Modules of ``part`` of whose own parameters none trains.

    Args:
        part: An adapted backbone, say.
        drop_path: Leave out stochastic depth.

    Returns:
        The modules, each by itself: their children have modes of their own.
    """
    return [
        module
        for module in part.modules()
        # a linear layer beside whose weight something trains is none of them
        if not any(p.requires_grad for p in module.parameters(recurse=isinstance(module, nn.Linear)))
        and not (drop_path and "droppath" in type(module).__name__.lower())
    ]
