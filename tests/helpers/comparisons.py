"""Whether state dicts, checkpoints and other nests of tensors are the same: to the bit, unless a tolerance is given."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from apla_mm.loading.checkpoint_reader import read_checkpoint

State = dict[str, Tensor]
#: of a checkpoint: all that training goes on from
PARTS = ("state_dict", "ema_state_dict", "optimizer", "param_schedulers")


def assert_same(one: Any, other: Any, tolerance: float = 0.0, ordered: bool = False) -> None:
    """Fails if two nests of tensors differ, or hold none; `differences` describes the arguments."""
    found = differences(one, other, tolerance, ordered)
    assert not found, "\n".join([f"{len(found)} differences:", *found[:10]])
    assert next(_tensors(one), None) is not None, "there is no tensor to compare"


def assert_same_checkpoint(
    one: Path | Mapping[str, Any], other: Path | Mapping[str, Any], parts: tuple[str, ...] = PARTS, **how: Any
) -> None:
    """Fails if two checkpoints are of different iterations, or one of the parts lacks or differs."""
    one, other = (read_checkpoint(each) if isinstance(each, Path) else each for each in (one, other))
    assert one["meta"]["iter"] == other["meta"]["iter"]
    for part in parts:
        found = differences(one[part], other[part], **how)
        assert not found, "\n".join([f"{len(found)} differences in {part}:", *found[:10]])
    assert next(_tensors(one["state_dict"]), None) is not None, "there is no tensor to compare"


def differences(one: Any, other: Any, tolerance: float = 0.0, ordered: bool = False, path: str = "") -> list[str]:
    """Where and how two nests of dicts, lists, tuples, tensors and plain values differ.

    Args:
        one: A nest.
        other: A nest. Tensors may be on another device or laid out otherwise in memory; dtypes and shapes count.
        tolerance: Largest absolute difference between tensors' values. Without one their bits count.
        ordered: Whether dicts must have the same order.
        path: Of both within larger nests.
    """
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        difference = _difference(one, other, tolerance)
        return [f"{path}: {difference}"] if difference else []
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        if one.keys() != other.keys():
            return [f"{path}: in one alone {sorted(map(str, one.keys() ^ other.keys()))}"]
        found = [f"{path}: in another order"] if ordered and list(one) != list(other) else []
        return found + [d for k in one for d in differences(one[k], other[k], tolerance, ordered, f"{path}.{k}")]
    if isinstance(one, list | tuple) and type(one) is type(other):
        if len(one) != len(other):
            return [f"{path}: {len(one)} and {len(other)} items"]
        pairs = enumerate(zip(one, other, strict=True))
        return [d for i, (x, y) in pairs for d in differences(x, y, tolerance, ordered, f"{path}.{i}")]
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return [f"{path}: {type(one).__name__} and {type(other).__name__}"]
    return [] if one == other else [f"{path}: {one!r} and {other!r}"]


def _difference(one: Tensor, other: Tensor, tolerance: float) -> str:
    if (one.dtype, one.shape) != (other.dtype, other.shape):
        return f"{one.dtype} of {tuple(one.shape)} and {other.dtype} of {tuple(other.shape)}"
    one, other = (tensor.detach().cpu().contiguous().reshape(-1) for tensor in (one, other))
    if torch.equal(one.view(torch.uint8), other.view(torch.uint8)):
        return ""
    largest = (one.double() - other.double()).abs().max().item()
    return "" if tolerance > 0 and largest <= tolerance else f"up to {largest} apart"


def _tensors(nest: Any) -> Iterator[Tensor]:
    if isinstance(nest, Tensor):
        yield nest
    elif isinstance(nest, Mapping | list | tuple):
        for child in nest.values() if isinstance(nest, Mapping) else nest:
            yield from _tensors(child)


def clone(state: Mapping[str, Tensor]) -> State:
    """A copy of a state dict that what becomes of the model leaves alone."""
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def changed_rows(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> dict[str, list[int]]:
    """Names of the tensors whose values changed, with their rows in which they did."""
    different = {name: torch.atleast_1d(tensor != before[name]) for name, tensor in after.items()}
    rows = {name: each.flatten(1).any(1) if each.dim() > 1 else each for name, each in different.items()}
    return {name: each.nonzero().flatten().tolist() for name, each in rows.items() if each.any()}
