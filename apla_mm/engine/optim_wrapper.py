"""Mixed precision where mmengine's own wrapper does not go."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from torch import nn


class BFloat16OptimWrapper(OptimWrapper):
    """Runs the forward pass under bfloat16 autocast, on any device.

    bfloat16 has float32's range, so no loss is scaled. mmengine's ``AmpOptimWrapper`` refuses CPUs, and those with
    matrix units gain several times in speed.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast around the model's forward, within what the plain wrapper does."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, dtype=torch.bfloat16):
            yield
