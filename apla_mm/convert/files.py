"""Files of weights, of whatever kind, read without running code, and written whole."""

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from ..delta import Delta
from ..delta.atomic_file import write_whole
from ..delta.base_file import is_base_name, load_base
from ..delta.errors import listed, printable
from ..delta.file import KEY
from ..runs.checkpoint_reader import load_from_local, read_pickle
from ..runs.packed_state import is_packed, unpack

DELTA, BASE, PLAIN, PICKLE = "delta", "base file", "plain safetensors", "checkpoint"
_STATES = ("state_dict", "model", "module")
#: arguments that messages name, and what they are called on the tools' command lines
_OPTIONS = {"check_base=False": "--no-check", "allow_nonfinite=True": "--allow-nonfinite"}


@dataclass(frozen=True)
class Weights:
    """A file's state dict and what lies beside it.

    Attributes:
        state: The state dict.
        rest: The other entries of a checkpoint, such as ``meta``.
        delta: Of a checkpoint that was saved without its base and not completed: what its state dict has.
    """

    state: dict[str, Tensor]
    rest: dict[str, Any] = field(default_factory=dict)
    delta: Delta | None = None

    @property
    def meta(self) -> dict[str, Any]:
        """What mmengine says of a checkpoint; empty in others."""
        meta = self.rest.get("meta")
        return meta if isinstance(meta, dict) else {}


def kind_of(path: Path) -> str:
    """Which kind of file this is: a delta, a base file, plain safetensors or a pickled checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or a folder.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"'{path}': no such file")
    if not path.is_file():
        raise ValueError(f"'{path}' is not a file, but a folder or device")
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and path.suffix != ".safetensors":
        return PICKLE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # a damaged file fails in any way
        raise ValueError(
            f"'{path}' is not a safetensors file, or damaged ({printable(error)}): copy it again"
        ) from error
    if KEY in metadata:
        return DELTA
    return BASE if is_base_name(path.name) else PLAIN


def read_weights(path: Path, completed: bool = True) -> Weights:
    """Read the state dict in a checkpoint, a base file or another safetensors file.

    Args:
        path: The file. Of a pickled checkpoint, only tensors and plain values are read.
        completed: Whether a checkpoint of ``APLAHook(save='delta')`` is completed with its base file, which must be
            found then.

    Returns:
        Its state dict and what lies beside it, on the CPU.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, holds other objects, or is a delta.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == DELTA:
        raise ValueError(
            f"'{path}' is a delta, and all weights are needed: put it on its base by "
            "tools/model_converters/merge_delta.py"
        )
    if kind == BASE:
        return Weights(load_base(path))
    if kind == PLAIN:
        try:
            return Weights(safetensors.torch.load_file(path))
        except Exception as error:  # of dtypes that torch has not
            raise ValueError(f"'{path}' cannot be read: {printable(error)}") from error
    checkpoint = load_from_local(path, "cpu") if completed else read_pickle(path, "cpu")
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a checkpoint")
    key = next((key for key in _STATES if isinstance(checkpoint.get(key), dict)), None)
    state = checkpoint if key is None else checkpoint[key]
    rest = {} if key is None else {name: value for name, value in checkpoint.items() if name != key}
    if not completed and is_packed(state):
        delta = unpack(state, str(path))
        return Weights({**delta.rows, **delta.tensors}, rest, delta)
    if wrong := [f"{name} ({fault})" for name, value in state.items() if (fault := _fault(name, value))]:
        raise ValueError(f"'{path}' has no plain state dict: see {listed(wrong)}")
    if not state:
        raise ValueError(f"'{path}' has an empty state dict")
    return Weights(state, rest)


def _fault(name: Any, value: Any) -> str:
    """Why an entry is none of a plain state dict."""
    if not isinstance(name, str):
        return f"its key is of type {type(name).__name__}"
    if not isinstance(value, Tensor):
        return f"of type {type(value).__name__}, no tensor"
    if value.is_meta:
        return "without values"
    if value.layout != torch.strided or value.is_quantized:
        return "sparse or quantized"
    if value.is_complex() and value.dtype != torch.complex64:
        return f"{value.dtype}, which safetensors files cannot hold"
    return ""


def said_by_tool(error: Exception) -> str:
    """An error's text for the terminal, naming the tools' options in place of arguments."""
    text = "\n".join(map(printable, str(error).splitlines()))
    for argument, option in _OPTIONS.items():
        text = text.replace(argument, option)
    return text


def check_output(path: Path, force: bool) -> None:
    """Refuse to write over a file.

    Raises:
        FileExistsError: It is there, and ``force`` is not set.
    """
    if path.exists() and (not force or not path.is_file()):
        raise FileExistsError(f"'{path}' is there already: name another file, or overwrite a file by --force")


def write_checkpoint(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint that OpenMMLab's tools read, or, by its suffix, a safetensors file of the tensors alone.

    Args:
        path: ``*.pth`` or ``*.safetensors``.
        state: The state dict.
        meta: What is said of it.

    Raises:
        ValueError: Another suffix.
        OSError: It cannot be written; what was there before is still there.
    """
    write_whole(checkpoint_bytes(path.suffix, state, meta), path)


def check_suffix(path: Path) -> None:
    """Refuse names that do not say which kind of file it shall be.

    Raises:
        ValueError: Neither ``.pth`` nor ``.safetensors``.
    """
    if path.suffix not in (".pth", ".safetensors"):
        raise ValueError(f"'{path}' must end in .pth or .safetensors")


def checkpoint_bytes(suffix: str, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> bytes | memoryview:
    """What :func:`write_checkpoint` writes; the same for the same arguments."""
    if suffix == ".safetensors":
        # clones: safetensors refuses tensors that share memory
        tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in state.items()}
        data: bytes = safetensors.torch.save(tensors, {"format": "pt"})
        return data
    buffer = io.BytesIO()
    torch.save(dict(meta=dict(meta), state_dict=state), buffer)
    return buffer.getbuffer()
