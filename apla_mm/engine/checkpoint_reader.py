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

    Args:
        filename: The file.
        map_location: As of ``torch.load``.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It cannot be read, or holds objects of other kinds.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint '{path}': no such file (looked in {Path.cwd()})")
    try:
        with torch.serialization.safe_globals(_safe_globals()):
            checkpoint = torch.load(path, map_location=map_location, weights_only=True)
    except Exception as error:  # a damaged pickle fails in any way
        reason = next((line for line in str(error).splitlines() if "Unsupported" in line or "attribute" in line), error)
        raise ValueError(
            f"checkpoint '{path}' was not read, being damaged or holding more than tensors and plain values: {reason}. "
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
