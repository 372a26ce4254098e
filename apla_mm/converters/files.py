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

from ..checkpoint.base_file import is_base_name, load_base
from ..checkpoint.errors import listed
from ..checkpoint.file import KEY
from ..checkpoint.whole_file import write_whole
from ..engine.checkpoint_reader import load_from_local

DELTA, BASE, PLAIN, PICKLE = "delta", "base file", "plain safetensors", "checkpoint"
_STATES = ("state_dict", "model", "module")


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
        """What mmengine says of a checkpoint; empty in others."""
        meta = self.rest.get("meta")
        return meta if isinstance(meta, dict) else {}


def kind_of(path: Path) -> str:
    """Which kind of file this is: a delta, a base file, plain safetensors or a pickled checkpoint.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"'{path}': no such file")
    with open(path, "rb") as file:
        start = file.read(9)
    if start[8:] != b"{" and path.suffix != ".safetensors":
        return PICKLE
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # a damaged file fails in any way
        raise ValueError(f"'{path}' is not a safetensors file, or damaged ({error}): copy it again") from error
    if KEY in metadata:
        return DELTA
    return BASE if is_base_name(path.name) else PLAIN


def read_weights(path: Path) -> Weights:
    """Read the state dict in a checkpoint, a base file or another safetensors file.

    Args:
        path: The file. Of a pickled checkpoint, only tensors and plain values are read.

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
        return Weights(safetensors.torch.load_file(path))
    checkpoint = load_from_local(path, map_location="cpu")
    if not isinstance(checkpoint, dict):
        raise ValueError(f"'{path}' holds a {type(checkpoint).__name__}, not a checkpoint")
    key = next((key for key in _STATES if isinstance(checkpoint.get(key), dict)), None)
    state = checkpoint if key is None else checkpoint[key]
    if wrong := [str(name) for name, value in state.items() if not isinstance(value, Tensor)]:
        raise ValueError(f"'{path}' has no state dict: {listed(wrong)} in it are no tensors")
    if not state:
        raise ValueError(f"'{path}' has an empty state dict")
    rest = {} if key is None else {name: value for name, value in checkpoint.items() if name != key}
    return Weights(state, rest)


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
