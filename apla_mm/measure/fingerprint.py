"""Digests of tensors, to tell whether they changed, and of the channels that train."""

import hashlib
import json
from typing import Any

import torch
from torch import Tensor, nn

from ..method import PartialLinear


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, dtype and shape; the same on every device."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    # a copy even on the CPU: FSDP cannot free a storage that NumPy has seen
    copied = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    data: Any = copied.reshape(-1).view(torch.uint8).numpy()
    digest.update(data)
    return digest.hexdigest()


def channels_of(model: nn.Module) -> dict[str, list[int]]:
    """The output channels that train, ascending, by the name of their projection.

    Args:
        model: An adapted model, not its DDP wrapper: names are those of ``model.named_modules()``.

    Returns:
        The lists. Projections that train in full are plain layers and not listed.
    """
    return {
        name: module.trained.channels.tolist()
        for name, module in model.named_modules()
        if isinstance(module, PartialLinear)
    }


def channels_digest(model: nn.Module) -> str:
    """SHA-256 of :func:`channels_of`; the order of the model's modules does not count."""
    return hashlib.sha256(json.dumps(channels_of(model), sort_keys=True).encode()).hexdigest()


def trained_and_frozen_digests(model: nn.Module) -> tuple[dict[str, str], dict[str, str]]:
    """Digests of what trains in a model and of what must not change.

    Of an adapted projection the rows that train and the others are told apart. The buffers of a module whose own
    parameters are all frozen, such as the statistics of a frozen norm, must not change either; other buffers may and
    are left out.

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
