"""Delta files; see the package for their format."""

import hashlib
import json
import os
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..text import listed, printable
from .atomic_file import write_atomic
from .delta import Delta
from .digests import tensor_digest
from .errors import DeltaError
from .header import Header
from .other_files import fault_of

KEY = "apla_delta"  #: of the header in the file's metadata
LONGEST_HEADER = 16 * 2**20  #: of safetensors' header, in bytes; it holds the delta's
_GROUPS = ("channels", "rows", "tensors")


def save_delta(delta: Delta, path: str | Path, *, allow_nonfinite: bool = False) -> None:
    """Write a delta to a safetensors file, beside its place and then renamed.

    Equal deltas give equal bytes.

    Args:
        delta: The delta.
        path: The file.
        allow_nonfinite: Whether tensors may hold NaN and infinity.

    Raises:
        DeltaError: The delta is not well formed, or its header cannot be written as JSON.
        OSError: The file cannot be written; what was there before is still there.
    """
    try:
        data = _to_bytes(delta, allow_nonfinite)
    except DeltaError as error:
        raise DeltaError(f"delta '{path}' was not written: {error}") from error
    write_atomic(data, path)


def load_delta(path: str | Path, *, allow_nonfinite: bool = False) -> Delta:
    """Read a delta from a file. No code in it can run, and it is read whole or not at all.

    Args:
        path: The file.
        allow_nonfinite: Whether tensors may hold NaN and infinity.

    Returns:
        The delta, on the CPU.

    Raises:
        DeltaError: There is no such file, or it is not a whole and well formed delta; names what is wrong.
    """
    try:
        data, metadata = _read(path)
        return _from_bytes(data, metadata, str(path), allow_nonfinite)
    except DeltaError as error:
        raise DeltaError(f"delta '{path}': {error}") from error


def _to_bytes(delta: Delta, allow_nonfinite: bool) -> bytes:
    delta.check(allow_nonfinite=allow_nonfinite)
    tensors = {f"{group}/{name}": t for group in _GROUPS for name, t in getattr(delta, group).items()}
    # clones: safetensors refuses tensors that share memory
    tensors = {name: t.detach().cpu().clone(memory_format=torch.contiguous_format) for name, t in tensors.items()}
    header = {**vars(delta.header), "fingerprint": delta.header.fingerprint}
    try:
        # as it will be read: tuples as lists, keys as strings
        header = json.loads(json.dumps(header))
        text = json.dumps({**header, "sha256": content_digest(header, tensors)}, sort_keys=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise DeltaError(f"its header cannot be written as JSON: {printable(error)}") from error
    data: bytes = safetensors.torch.save(tensors, {KEY: text})
    if (length := int.from_bytes(data[:8], "little")) > LONGEST_HEADER:
        raise DeltaError(
            f"its header has {length} bytes, and {LONGEST_HEADER} are allowed; leave out 'config' or 'extra'"
        )
    return data


def _read(path: str | Path) -> tuple[bytes, dict[str, Any]]:
    """A file's bytes, and what its header says beside tensors, once its size is the one that its header says."""
    try:
        # not to wait for what is no file, such as a FIFO
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except (OSError, ValueError) as error:
        raise DeltaError(f"it cannot be opened: {getattr(error, 'strerror', None) or error}") from error
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise DeltaError("it is not a file, but a folder or device")
        with open(descriptor, "rb", closefd=False) as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > status.st_size - 8:
                raise DeltaError(_what_else(Path(path)))
            if length > LONGEST_HEADER:
                raise DeltaError(f"its header has {length} bytes, and {LONGEST_HEADER} are allowed: it is not a delta")
            metadata, end = _parsed(file.read(length))
            if 8 + length + end != status.st_size:
                raise DeltaError(
                    f"it is not a safetensors file, or damaged (it has {status.st_size} bytes, and should have "
                    f"{8 + length + end}): copy it again"
                )
            file.seek(0)
            data = file.read(status.st_size)
    except (OSError, MemoryError) as error:
        raise DeltaError(f"it cannot be read: {error or type(error).__name__}") from error
    finally:
        os.close(descriptor)
    return data, metadata


def _parsed(header: bytes) -> tuple[dict[str, Any], int]:
    """What safetensors' header says beside tensors, and where the last of them ends."""
    try:
        entries = json.loads(header)
        metadata = entries.pop("__metadata__", None) or {}
        ends = [entry["data_offsets"][1] for entry in entries.values()]
        if not isinstance(metadata, dict) or not all(type(end) is int and 0 <= end < 2**63 for end in ends):
            raise ValueError("its header is damaged")
    except Exception as error:  # a damaged header fails in any way
        raise DeltaError(f"it is not a safetensors file, or damaged ({printable(error)}): copy it again") from error
    return metadata, max(ends, default=0)


def _from_bytes(data: bytes, metadata: Mapping[str, Any], source: str, allow_nonfinite: bool) -> Delta:
    try:
        tensors = safetensors.torch.load(data)
    except Exception as error:  # a damaged file fails in any way
        raise DeltaError(f"it is not a safetensors file, or damaged ({printable(error)}): copy it again") from error
    if KEY not in metadata:
        raise DeltaError(f"it is a safetensors file, but has no '{KEY}' in its metadata: plain weights are not a delta")
    try:
        values = json.loads(metadata[KEY])
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"its header is not JSON ({printable(error)}): it is damaged, or no delta") from error
    if not isinstance(values, dict):
        raise DeltaError("its header is not a JSON object: it is damaged, or no delta")
    sha256, fingerprint = values.pop("sha256", None), values.pop("fingerprint", None)
    header = Header.from_json(values)
    if fingerprint != header.fingerprint:
        raise DeltaError("its fingerprint is not that of its base's digests: it is damaged")
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    for key, tensor in tensors.items():
        group, _, name = key.partition("/")
        if group not in groups:
            raise DeltaError(f"its tensor {listed([key])} is neither of channels, rows nor tensors: it is damaged")
        groups[group][name] = tensor
    delta = Delta(**groups, header=header, source=source)
    delta.check(allow_nonfinite=allow_nonfinite)
    _check_content(sha256, content_digest({**values, "fingerprint": fingerprint}, tensors))
    return delta


def _what_else(path: Path) -> str:
    """What a file is that cannot be one of safetensors."""
    if fault := fault_of(path):
        return f"it is not a safetensors file: {fault}"
    if zipfile.is_zipfile(path):
        return "it is not a safetensors file, but a checkpoint of torch, and a delta is needed: see apla-mm extract"
    return "it is not a safetensors file, or only the beginning of one: copy it again"


def content_digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a delta's header and of its tensors by name."""
    digests = {name: tensor_digest(tensor) for name, tensor in tensors.items()}
    return hashlib.sha256(json.dumps([header, digests], sort_keys=True).encode()).hexdigest()


def _check_content(expected: Any, found: str) -> None:
    if expected != found:
        raise DeltaError("its SHA-256 is not the one it names: it is damaged, copy it again")
