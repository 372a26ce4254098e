"""Files of weights: which kind a file is of, and its state dict. Every reader of this package asks here."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..text import listed, printable
from .base_file import is_base_name, load_base
from .file import KEY
from .other_files import fault_of
from .pickles import Inert, read_pickle

_STATES = ("state_dict", "model", "module")


class Kind(Enum):
    """Of a file of weights; the value is what people call it."""

    DELTA = "delta"
    BASE = "base file"
    SAFETENSORS = "plain safetensors"
    PICKLE = "checkpoint"


@dataclass(frozen=True)
class Weights:
    """A file's state dict and what lies beside it.

    Attributes:
        state: The state dict.
        rest: The other entries of a checkpoint, such as ``meta``.
    """

    state: dict[str, Tensor]
    rest: dict[str, Any] = field(default_factory=dict)

    @property
    def meta(self) -> dict[str, Any]:
        """The ``meta`` of mmengine's checkpoints; empty in others."""
        meta = self.rest.get("meta")
        return meta if isinstance(meta, dict) else {}


def kind_of(path: str | Path) -> Kind:
    """Which kind of file this is, by its content; a base file also by its name.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, a folder, or of another kind: says which it seems to be.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"'{path}': no such file (looked in {Path.cwd()})")
    if not path.is_file():
        raise ValueError(f"'{path}' is not a file, but a folder or device")
    with open(path, "rb") as file:
        start = file.read(9)
    fault = "" if start[8:] == b"{" else fault_of(path)
    if start[8:] != b"{" and path.suffix != ".safetensors":
        if fault:
            raise ValueError(f"'{path}' cannot be read: {fault}")
        return Kind.PICKLE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # a damaged file fails in any way
        fault = fault.removesuffix(": copy or download it again") or printable(error)
        raise ValueError(f"'{path}' is not a safetensors file, or damaged ({fault}): copy it again") from error
    if KEY in metadata:
        return Kind.DELTA
    return Kind.BASE if is_base_name(path.name) else Kind.SAFETENSORS


def read_weights(path: str | Path, known: Sequence[Any] = ()) -> Weights:
    """Read the state dict in a checkpoint, a base file or another safetensors file.

    Args:
        path: The file. Nothing in a pickle is run; see :mod:`~.pickles`.
        known: Further types that a pickle may hold, as of :func:`~.pickles.read_pickle`.

    Returns:
        Its state dict and what lies beside it, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds no state dict, or is a delta.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind is Kind.DELTA:
        raise ValueError(
            f"'{path}' is a delta, and all weights are needed: put it on its base by apla-mm merge DELTA OUT.pth"
        )
    if kind is Kind.BASE:
        return Weights(load_base(path))
    if kind is Kind.SAFETENSORS:
        try:
            return Weights(safetensors.torch.load_file(path))
        except Exception as error:  # of dtypes that torch has not
            raise ValueError(f"'{path}' cannot be read: {printable(error)}") from error
    return weights_in(read_pickle(path, known=known), path)


def weights_in(checkpoint: Any, path: Path) -> Weights:
    """The state dict of a checkpoint that was read, and what lies beside it.

    Raises:
        ValueError: It has none.
    """
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {_type_name(checkpoint)}, not a checkpoint")
    key = next((key for key in _STATES if isinstance(checkpoint.get(key), dict)), None)
    state = checkpoint if key is None else checkpoint[key]
    rest = {} if key is None else {name: value for name, value in checkpoint.items() if name != key}
    if wrong := [f"{name} ({fault})" for name, value in state.items() if (fault := _fault(name, value))]:
        raise ValueError(f"'{path}' has no plain state dict: see {listed(wrong)}")
    if not state:
        raise ValueError(f"'{path}' has an empty state dict")
    return Weights(state, rest)


def _fault(name: Any, value: Any) -> str:
    """Why an entry is none of a plain state dict."""
    if not isinstance(name, str):
        return f"its key is of type {_type_name(name)}"
    if not isinstance(value, Tensor):
        return f"of type {_type_name(value)}, no tensor"
    if value.is_meta:
        return "without values"
    if value.layout != torch.strided or value.is_quantized:
        return "sparse or quantized"
    if value.is_complex() and value.dtype != torch.complex64:
        return f"{value.dtype}, which safetensors files cannot hold"
    return ""


def _type_name(value: Any) -> str:
    return printable(value.type_name if isinstance(value, Inert) else type(value).__name__)
