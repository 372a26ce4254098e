"""Tensors found again in files by their values, whatever their names, shapes and order have become."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

_Digest = tuple[int, int]  # number of values, and the sum of their hashes
_CHUNK, _MASK = 2**22, 2**64 - 1


def names_from(wanted: Mapping[str, Tensor], tensors: Iterable[Tensor]) -> set[str]:
    """Which tensors hold the values of others, in whatever order.

    Backbones rename, transpose and permute what they load, and concatenate up to three (q, k and v).

    Args:
        wanted: The tensors by name.
        tensors: The others, in whatever dtype; compared in that of the wanted ones.

    Returns:
        Names of those that were found.
    """
    tensors = [tensor for tensor in tensors if tensor.is_floating_point()]
    found: set[str] = set()
    for dtype in {tensor.dtype for tensor in wanted.values()}:
        digests = {name: _digest(tensor, dtype) for name, tensor in wanted.items() if tensor.dtype == dtype}
        sizes = {size for size, _ in digests.values()}
        pool = {_digest(tensor, dtype) for tensor in tensors if tensor.numel() in sizes}
        found |= {name for name, digest in digests.items() if digest in pool}
        if rest := {name: digest for name, digest in digests.items() if name not in found}:
            most = max(size for size, _ in rest.values())
            pool |= {_digest(tensor, dtype) for tensor in tensors if tensor.numel() < most}
            found |= {name for name, digest in rest.items() if _is_sum(digest, pool)}
    return found


def is_constant(tensor: Tensor) -> bool:
    """Whether all values are the same, as many are before training: nothing tells then where they come from."""
    return not tensor.numel() or bool(tensor.min() == tensor.max())


def _digest(tensor: Tensor, dtype: torch.dtype) -> _Digest:
    flat, total = tensor.detach().reshape(-1), 0
    for chunk in flat.split(_CHUNK):
        values = chunk.to(dtype).float() + 0.0  # -0 is 0
        hashes = values.view(torch.int32).long() * 0x2545F4914F6CDD1D
        hashes ^= hashes >> 29
        hashes *= 0x1B873593CC9E2D51
        hashes ^= hashes >> 32
        total += int(hashes.sum())
    return flat.numel(), total & _MASK


def _is_sum(digest: _Digest, pool: set[_Digest]) -> bool:
    """Whether these are the values of two tensors, or of three of one size, together."""

    def without(one: _Digest, of: _Digest) -> _Digest:
        return of[0] - one[0], (of[1] - one[1]) & _MASK

    if any(without(one, digest) in pool for one in pool if one[0] < digest[0]):
        return True
    thirds = [one for one in pool if 3 * one[0] == digest[0]]
    return any(without(other, without(one, digest)) in pool for one in thirds for other in thirds)
