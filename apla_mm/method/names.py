"""A projection's name, and the names of its tensors in a state dict."""

from collections.abc import Container

_KINDS = ("weight", "bias")


def tensors_of(projection: str, state: Container[str]) -> list[str]:
    """Those of a projection's ``weight`` and ``bias`` that a state dict, or a set of names, has."""
    return [name for kind in _KINDS if (name := f"{projection}.{kind}" if projection else kind) in state]


def projection_of(tensor: str) -> str | None:
    """The projection whose ``weight`` or ``bias`` a tensor of a state dict is by its name; None if it is neither."""
    projection, _, kind = tensor.rpartition(".")
    return projection if kind in _KINDS else None
