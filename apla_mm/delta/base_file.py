"""Base files: what deltas were trained on, written once and shared by many of them.

A base file is a plain safetensors file of a state dict as it was before training. It is called
``base-<16 hexadecimal digits>.safetensors`` by the fingerprint of all its tensors, and a delta names it in
``header.extra['base_file']``.
"""

import os
import re
from collections.abc import Iterator, Mapping, Set
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ..text import listed, printable
from .apply import apply_delta
from .atomic_file import write_atomic
from .delta import Delta
from .digests import base_digests, common_prefix, fingerprint
from .errors import DeltaError

BASE_FILE = "base_file"  #: key of a base file's name in a delta's ``header.extra``
ENVIRONMENT = "APLA_MM_BASES"  #: environment variable of folders with base files, with os.pathsep between them
_NAME = re.compile(r"base-[0-9a-f]{16}\.safetensors")
_LEVELS = 2


def is_base_name(name: str) -> bool:
    """Whether a file may be a base file, by its name."""
    return _NAME.fullmatch(name) is not None


def base_name(state: Mapping[str, Tensor]) -> str:
    """The name of the file of a base: by its tensors' names, dtypes, shapes and bytes.

    Args:
        state: A state dict.

    Returns:
        ``base-<16 hexadecimal digits>.safetensors``.
    """
    return f"base-{fingerprint(base_digests(state, {}))[:16]}.safetensors"


def save_base(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write a base file, unless it is there already.

    Args:
        state: The state dict before training.
        folder: Where to; made if needed.

    Returns:
        The file, named by its fingerprint.

    Raises:
        DeltaError: Something in the state dict is no plain tensor.
        OSError: It cannot be written; nothing is left of it.
    """
    if wrong := [name for name, tensor in state.items() if not _is_plain(tensor)]:
        raise DeltaError(f"{listed(wrong)} in the state dict are no plain tensors; of a checkpoint, give 'state_dict'")
    path = Path(folder) / base_name(state)
    if path.is_file():
        try:
            load_base(path)
        except DeltaError:
            pass  # damaged: written again
        else:
            return path
    # clones: safetensors refuses tensors that share memory
    tensors = {
        name: tensor.detach().cpu().clone(memory_format=torch.contiguous_format) for name, tensor in state.items()
    }
    write_atomic(safetensors.torch.save(tensors), path)
    return path


def find_base(name: str, delta_path: Path) -> Path:
    """Look for a delta's base file.

    It is looked for in the delta's folder, in ``bases`` in that folder and in the two above it, in the same places for
    what a symbolic link leads to, and in the folders of the environment variable ``APLA_MM_BASES``.

    Args:
        name: The base file's, of the delta's ``header.extra['base_file']``.
        delta_path: The delta's file.

    Returns:
        The file, which is there but was not read.

    Raises:
        DeltaError: The name is not that of a base file, or there is no such file in any of the folders.
    """
    if not isinstance(name, str) or not is_base_name(name):
        raise DeltaError(
            f"delta '{delta_path}': its base file must be called base-<16 hexadecimal digits>.safetensors, without a "
            f"folder, and not {ascii(name)[:80]}"
        )
    folders = base_folders(Path(delta_path))
    for folder in folders:
        if (folder / name).is_file():
            return folder / name
    looked_in = ", ".join(f"'{folder}'" for folder in folders)
    raise DeltaError(
        f"delta '{delta_path}' needs its base, the file '{name}', which is not in any of {looked_in}: copy it into one "
        f"of them, name the folder that it is in by the environment variable {ENVIRONMENT}, or make it anew from the "
        "weights that training began with: apla-mm make-base CONFIG DELTA"
    )


def load_base(path: Path) -> dict[str, Tensor]:
    """Read a base file and check that it is the one that its name says.

    Args:
        path: The file.

    Returns:
        The state dict before training, on the CPU.

    Raises:
        DeltaError: There is no such file, it is damaged, or its tensors are not those that it is named by.
    """
    path = Path(path)
    if not is_base_name(path.name):
        raise DeltaError(f"base '{path}': a base file is called base-<16 hexadecimal digits>.safetensors")
    if not path.is_file():
        raise DeltaError(f"base '{path}': there is no such file")
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load_file(path)
    except Exception as error:  # a damaged file fails in any way
        raise DeltaError(
            f"base '{path}': it is not a safetensors file, or damaged ({printable(error)}): copy it again"
        ) from error
    if (name := base_name(tensors)) != path.name:
        raise DeltaError(
            f"base '{path}': by its tensors it would be called '{name}': it was renamed, or is damaged; copy it again"
        )
    return tensors


def named_as(base: Mapping[str, Tensor], needed: Set[str]) -> Mapping[str, Tensor]:
    """A base under the names that it is needed by, where they differ in what all of them have at the front.

    A fingerprint leaves that out, so one base file serves models that hold the same backbone under any name.

    Args:
        base: The state dict before training.
        needed: Names, such as those of a delta's ``header.base``.
    """
    if needed <= base.keys():
        return base
    ours, theirs = common_prefix(base), common_prefix(needed)
    return {theirs + name[len(ours) :]: tensor for name, tensor in base.items()}


def merged_state(delta: Delta, base: Mapping[str, Tensor], check_base: bool = True) -> dict[str, Tensor]:
    """Put a delta on its base.

    Args:
        delta: The delta.
        base: The state dict before training. It is not changed; what only it has, such as the head of another task,
            is left out.
        check_base: Whether to compare the base with the one that the delta was trained on.

    Returns:
        The whole state dict after training, bit by bit.

    Raises:
        BaseMismatchError: It is another base.
        DeltaError: The base lacks tensors, or they do not fit.
    """
    needed = delta.header.base.keys()
    base = named_as(base, needed)
    if missing := needed - base.keys():
        have = f"it has {listed(base.keys(), 3)}" if base else "it is empty"
        raise DeltaError(
            f"delta '{delta.source}': {listed(missing)} are not in the base: {have}; give the whole of what the delta "
            "was trained on, under the same names"
        )
    state = {name: base[name] for name in sorted(needed)}
    apply_delta(state, delta, check_base=check_base)
    return state


def base_folders(delta_path: Path) -> list[Path]:
    """The folders in which a delta's base file is looked for, first to last; see :func:`find_base`."""
    return list(dict.fromkeys(_folders(delta_path)))


def _folders(delta_path: Path) -> Iterator[Path]:
    for path in (os.path.abspath(delta_path), os.path.realpath(delta_path)):  # of a link, and of what it leads to
        folder = Path(path).parent
        yield folder
        for above in (folder, *folder.parents[:_LEVELS]):
            yield above / "bases"
    for path in os.environ.get(ENVIRONMENT, "").split(os.pathsep):
        if path:
            yield Path(path).expanduser()


def _is_plain(tensor: object) -> bool:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.device.type == "meta":
        return False
    return not tensor.is_complex() or tensor.dtype == torch.complex64  # safetensors has no other
