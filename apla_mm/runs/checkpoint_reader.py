"""Reads mmengine's checkpoints without running what a pickle says."""

import pickle
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import numpy as np
import torch
from mmengine.dist import barrier, get_dist_info
from mmengine.logging import HistoryBuffer
from mmengine.runner import CheckpointLoader
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ..delta import Delta, DeltaError, load_delta
from ..delta.base_file import BASE_FILE, find_base, is_base_name, load_base, merged_state
from ..delta.errors import printable
from ..delta.file import KEY
from .delta_meta import meta_of, with_versions
from .packed_state import EMA, EMA_OTHERS, EMA_PREFIX, is_packed, unpack
from .strict_delta import must_fit

_STATISTICS = ("min", "max", "mean", "current")


def _statistics_method(owner: Any, name: str) -> Any:
    """Stands in for ``getattr``, by which a pickled HistoryBuffer names its methods; the real one would open all."""
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"the attribute '{name}' of {owner!r}")


def _safe_globals() -> list[Any]:
    multiarray: Any = getattr(np, "_core", None) or np.core
    dtypes = [cls for cls in vars(np.dtypes).values() if isinstance(cls, type) and issubclass(cls, np.dtype)]
    # checkpoints are read beside another NumPy than wrote them, and 2.0 moved these functions
    functions = [
        (getattr(multiarray.multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ]
    return [HistoryBuffer, np.ndarray, np.dtype, *dtypes, *functions, (_statistics_method, "builtins.getattr")]


@CheckpointLoader.register_scheme(prefixes="", force=True)
def load_from_local(filename: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from a local file, for mmengine's ``load_checkpoint``, ``load_from`` and ``resume``.

    mmengine 0.10.7 cannot read its own checkpoints with ``weights_only=True``, and onedl-mmengine falls back to an
    unpickling that runs any code in the file. Here exactly what mmengine itself writes is allowed.

    A delta, a safetensors file, and a checkpoint of ``APLAHook(save='delta')`` are completed with their base file; see
    :func:`~apla_mm.delta.base_file.find_base` for where it is looked for. mmengine then loads them whole or not at
    all. A state dict in a safetensors file is read too.

    Args:
        filename: The file.
        map_location: As of ``torch.load``; of safetensors a device alone.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read, or holds objects of other kinds.
        DeltaError: It is a delta, and damaged, or its base was not found or is another one.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint '{path}': no such file (looked in {Path.cwd()})")
    if _is_safetensors(path):
        return _read_safetensors(path, map_location)
    checkpoint = read_pickle(path, map_location)
    if isinstance(checkpoint, dict) and is_packed(checkpoint.get("state_dict")):
        _complete(checkpoint, path, map_location)
    return checkpoint


def _is_safetensors(path: Path) -> bool:
    with open(path, "rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _read_safetensors(path: Path, map_location: Any) -> dict[str, Any]:
    if is_base_name(path.name):
        raise ValueError(f"checkpoint '{path}' is a base, without what was trained: name a delta of it instead")
    try:
        with safe_open(path, "pt") as file:
            plain = KEY not in (file.metadata() or {})
        state: Any = load_file(path) if plain else None
    except Exception:  # a damaged file fails in any way, and load_delta names it
        plain = False
    if plain:
        return dict(meta={}, state_dict=_moved(state, map_location))
    delta = load_delta(path)
    state = with_versions(merged_state(delta, _base_of(delta, path)), delta.header)
    return dict(meta=meta_of(delta.header), state_dict=must_fit(_moved(state, map_location), str(path)))


def _complete(checkpoint: dict[str, Any], path: Path, map_location: Any) -> None:
    """Put the base into a checkpoint that was saved without it."""
    # deltas are put together on the CPU
    packed = checkpoint if map_location in (None, "cpu") else read_pickle(path, "cpu")
    delta = unpack(packed["state_dict"], str(path))
    base = _base_of(delta, path)
    state = with_versions(merged_state(delta, base), delta.header)
    checkpoint["state_dict"] = must_fit(_moved(state, map_location), str(path))
    if EMA in checkpoint:
        mean = merged_state(unpack(packed[EMA], str(path)), base)
        state = with_versions(mean, delta.header, EMA_PREFIX)  # EMAHook exchanges it with the other, which must fit
        state.update(packed.get(EMA_OTHERS, {}))
        checkpoint[EMA] = _moved(state, map_location)
        checkpoint.pop(EMA_OTHERS, None)


def _base_of(delta: Delta, path: Path) -> dict[str, Tensor]:
    name = delta.header.extra.get(BASE_FILE)
    if name is None:
        raise DeltaError(
            f"delta '{path}' does not name its base file: merge both by tools/model_converters/merge_delta.py"
        )
    return load_base(find_base(name, path))


def _moved(state: Any, map_location: Any) -> Any:
    if isinstance(map_location, str | torch.device):
        for name, tensor in state.items():
            state[name] = tensor.to(map_location)
    return state


def read_pickle(path: Path, map_location: Any) -> Any:
    """Read a checkpoint as it is, without completing one that was saved without its base.

    Args:
        path: The file.
        map_location: As of ``torch.load``.

    Returns:
        What it holds: tensors and plain values.

    Raises:
        ValueError: It cannot be read, or holds objects of other kinds.
    """
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "attribute" in line), error)
        raise ValueError(
            f"checkpoint '{path}' was not read, being damaged or holding more than tensors and plain values: "
            f"{printable(reason)}. "
            "Name types of your own that it may hold by torch.serialization.add_safe_globals"
        ) from error
    meta = checkpoint.get("meta") if isinstance(checkpoint, dict) else None
    if isinstance(meta, dict):
        meta.pop("config", None)  # a text that mmengine would run as Python when it resumes
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=("http://", "https://"), force=True)
def load_from_http(filename: str, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint from the web as :func:`load_from_local` reads files; mmengine would run any code in it.

    It is downloaded once, into torch's cache.

    Args:
        filename: The URL.
        map_location: As of ``torch.load``.

    Returns:
        The checkpoint.

    Raises:
        OSError: It cannot be downloaded.
        ValueError: It cannot be read, or holds objects of other kinds.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(filename).path).name)
    rank, _ = get_dist_info()
    if rank > 0:
        barrier()  # until the first process has it, or failed
    try:
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(filename, str(path), progress=sys.stderr.isatty())
    finally:
        if rank == 0:
            barrier()
    return load_from_local(path, map_location)
