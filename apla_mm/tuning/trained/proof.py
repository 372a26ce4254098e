"""Digests of a model's tensors, to prove what training changed."""

import torch
from torch import nn

from ...delta.digests import tensor_digest
from ...method import PartialLinear


def trained_and_frozen_digests(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of what trains in a model and of what must not change.

    Of an adapted projection the rows that train and the others have digests of their own. The buffers of a module
    whose own parameters are all frozen, such as the statistics of a frozen norm, must not change either; other buffers
    may and are left out.

    Returns:
        Digests by name of what trains, and of what is frozen.
    """
    trained: dict[str, str] = {}
    frozen: dict[str, str] = {}
    for name, module in model.named_modules():
        prefix = f"{name}." if name else ""
        if isinstance(module, PartialLinear):
            module.sync()
            others = torch.ones(module.out_features, dtype=torch.bool, device=module.weight.device)
            others[module.trained.channels] = False
            for key, tensor in module.named_parameters(recurse=False):
                frozen[f"{prefix}{key} (frozen channels)"] = tensor_digest(tensor[others])
            continue
        parameters = dict(module.named_parameters(recurse=False))
        for key, tensor in parameters.items():
            (trained if tensor.requires_grad else frozen)[prefix + key] = tensor_digest(tensor)
        if parameters and not any(tensor.requires_grad for tensor in parameters.values()):
            for key, tensor in module.named_buffers(recurse=False):
                frozen[prefix + key] = tensor_digest(tensor)
    return trained, frozen
