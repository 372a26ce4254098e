"""Files of weights, written whole."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..delta.atomic_file import write_atomic


def check_output(path: Path, force: bool, *read: Path | None) -> None:
    """Refuse to write over a file.

    Args:
        path: The file to write.
        force: Whether one that is there may be replaced.
        read: Files that it is made of, which stay in any case.

    Raises:
        FileExistsError: It is there, and ``force`` is not set, or it is one that is read.
    """
    if any(path.exists() and one is not None and one.exists() and path.samefile(one) for one in read):
        raise FileExistsError(f"'{path}' is one of the files that are read: name another")
    if path.exists() and (not force or not path.is_file()):
        raise FileExistsError(f"'{path}' is there already: name another file, or overwrite a file by --force")


def write_checkpoint(path: Path, state: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
    """Write a checkpoint that OpenMMLab's tools read, or, by its suffix, a safetensors file of the tensors alone.

    Args:
        path: ``*.pth`` or ``*.safetensors``.
        state: The state dict.
        meta: The checkpoint's ``meta``.

    Raises:
        ValueError: Another suffix.
        OSError: It cannot be written; what was there before is still there.
    """
    write_atomic(checkpoint_bytes(path.suffix, state, meta), path)


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
