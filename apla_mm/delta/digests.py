"""Which base a delta belongs to: digests of what did not train."""

import hashlib
import json
import os
from collections.abc import Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor

from ..method.names import projection_of
from ..text import listed
from .errors import BaseMismatchError


def tensor_digest(tensor: Tensor) -> str:
    """SHA-256 of a tensor's bytes, dtype and shape; the same on every device."""
    digest = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    # a copy even on the CPU: FSDP cannot free a storage that NumPy has seen
    copied = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    data: Any = copied.reshape(-1).view(torch.uint8).numpy()
    digest.update(data)
    return digest.hexdigest()


def base_digests(
    tensors: Mapping[str, Tensor], channels: Mapping[str, Tensor], leave_out: Collection[str] = ()
) -> dict[str, str]:
    """SHA-256 of what of a state dict belongs to the base: of each tensor's dtype, shape and bytes.

    The device, the order and how the tensors lie in memory do not count.

    Args:
        tensors: A state dict.
        channels: Of the projections by name, the output channels that train, int64 (r,). Of their ``weight`` and
            ``bias`` the other rows count.
        leave_out: Names of tensors that train whole.

    Returns:
        Digests by name.
    """
    names = sorted(set(tensors) - set(leave_out))
    # hashing and copying large tensors leave the interpreter to other threads
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digests = pool.map(lambda name: tensor_digest(_base_part(name, tensors[name], channels)), names)
        return dict(zip(names, digests, strict=True))


def _base_part(name: str, tensor: Tensor, channels: Mapping[str, Tensor]) -> Tensor:
    projection = projection_of(name)
    if projection is None or projection not in channels:
        return tensor
    chosen = channels[projection].to(tensor.device)
    if tensor.dim() == 0 or (chosen >= len(tensor)).any():  # a bias of something else
        return tensor
    others = torch.ones(len(tensor), dtype=torch.bool, device=tensor.device)
    others[chosen] = False
    return tensor.detach()[others]


def fingerprint(digests: Mapping[str, str]) -> str:
    """One SHA-256 of a base's digests; a prefix that all names have in common, such as ``backbone.``, is left out.

    Two deltas of one base have the same fingerprint if the same of it trained.

    Args:
        digests: Of :func:`base_digests`.

    Returns:
        64 hexadecimal digits.
    """
    common = common_prefix(digests)
    pairs = sorted((name[len(common) :], digest) for name, digest in digests.items())
    return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()


def common_prefix(names: Iterable[str]) -> str:
    """The modules that all names of tensors begin with, such as ``backbone.``."""
    modules = zip(*(name.split(".")[:-1] for name in names), strict=False)
    return "".join(f"{parts[0]}." for parts in takewhile(lambda parts: len(set(parts)) == 1, modules))


def check_base(expected: Mapping[str, str], found: Mapping[str, str]) -> None:
    """Compare the base that a delta belongs to with the one it is put on.

    Args:
        expected: The delta's ``header.base``.
        found: Of :func:`base_digests`, with the delta's channels and tensors.

    Raises:
        BaseMismatchError: They differ; names what does.
    """
    if expected == found:
        return
    kinds = {
        "differ": {name for name in expected.keys() & found.keys() if expected[name] != found[name]},
        "are missing": expected.keys() - found.keys(),
        "are not in the delta's base": found.keys() - expected.keys(),
    }
    parts = [f"{len(names)} {kind}: {listed(names)}" for kind, names in kinds.items() if names]
    raise BaseMismatchError(
        f"it was trained on another base: fingerprint {fingerprint(expected)[:12]}, here {fingerprint(found)[:12]}; "
        f"of {len(expected)} tensors {'; '.join(parts)}. Use the weights that it was trained on, or apply it "
        "regardless by check_base=False"
    )
