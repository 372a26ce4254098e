"""Reading checkpoints under mmengine: deltas wherever it loads, and its own without running what a pickle says."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.runner import CheckpointLoader

from ..delta import DeltaError, load_delta
from ..delta.base_file import BASE_FILE, find_base, load_base, merged_state
from ..delta.pickles import Inert, read_pickle
from ..delta.weights_file import Kind, kind_of, read_weights
from ..internals import SCHEME, is_local_file, without_scheme
from ..text import first_few, printable
from .delta_meta import meta_of, with_versions
from .plain_values import without_inert
from .strict_delta import must_fit

_WHOLE = "holds a whole object {}, not a state dict: where its code is, torch.save its state_dict()"
_STATISTICS = ("min", "max", "mean", "current")


def _statistics_method(owner: Any, name: str) -> Any:
    """Replaces ``getattr``, by which a pickled HistoryBuffer names its methods; the real one would open all."""
    if owner is HistoryBuffer and name in _STATISTICS:
        return getattr(owner, name)
    raise pickle.UnpicklingError(f"the attribute '{name}' of {owner!r}")


_GETATTR = (_statistics_method, "builtins.getattr")


def mmengines_types() -> list[Any]:
    """What mmengine's own checkpoints hold beside tensors and plain values, as torch's ``safe_globals`` take it."""
    multiarray: Any = getattr(np, "_core", None) or np.core
    dtypes = [cls for cls in vars(np.dtypes).values() if isinstance(cls, type) and issubclass(cls, np.dtype)]
    # checkpoints are read beside another NumPy than wrote them, and 2.0 moved these functions
    functions = [
        (getattr(multiarray.multiarray, name), f"numpy.{core}.multiarray.{name}")
        for name in ("_reconstruct", "scalar")
        for core in ("core", "_core")
    ]
    # OneDL's mmengine takes its own types off torch's list after each load: with their names they are other entries
    types = [(cls, f"{cls.__module__}.{cls.__qualname__}") for cls in (HistoryBuffer, np.ndarray, np.dtype, *dtypes)]
    return [*types, *functions, _GETATTR]


def _add_safe_globals() -> None:
    """Let mmengine read its own checkpoints with ``weights_only=True``, torch's default since 2.6.

    The original one allows nothing for it, OneDL's not all dtypes of NumPy that scores may have, and nothing for what
    it downloads.
    """
    torch.serialization.add_safe_globals(mmengines_types())


_add_safe_globals()


@CheckpointLoader.register_scheme(prefixes=r".*\.safetensors$")
def load_from_safetensors(filename: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a safetensors file, for mmengine's ``load_checkpoint`` and ``load_from``, which know none.

    A delta is completed with its base file; see :func:`~apla_mm.delta.base_file.find_base` for where it is looked for.
    mmengine then loads it whole or not at all. A plain state dict is loaded as others are.

    Args:
        filename: The file.
        map_location: A device.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, or a base file.
        DeltaError: It is a delta, and damaged, or its base was not found or is another one.
    """
    path = Path(filename).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint '{path}': no such file (looked in {Path.cwd()})")
    kind = kind_of(path)
    if kind is Kind.BASE:
        raise ValueError(f"checkpoint '{path}' is a base, without what was trained: name a delta of it instead")
    if kind is not Kind.DELTA:
        return dict(meta={}, state_dict=_moved(read_weights(path).state, map_location))
    delta = load_delta(path)
    name = delta.header.extra.get(BASE_FILE)
    if name is None:
        raise DeltaError(
            f"delta '{path}' does not name its base file: merge both by apla-mm merge DELTA OUT.pth --base BASE"
        )
    state = with_versions(merged_state(delta, load_base(find_base(name, path))), delta.header)
    return dict(meta=meta_of(delta.header), state_dict=must_fit(_moved(state, map_location), str(path)))


def _moved(state: Any, map_location: Any) -> Any:
    if isinstance(map_location, str | torch.device):
        for name, tensor in state.items():
            state[name] = tensor.to(map_location)
    return state


def read_checkpoint(path: str | Path, map_location: Any = "cpu") -> Any:
    """Read a local checkpoint of whatever kind; nothing in it is run.

    Args:
        path: The file.
        map_location: As of ``torch.load``.

    Returns:
        What it holds; a delta is completed as by :func:`load_from_safetensors`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged.
    """
    if kind_of(path) is not Kind.PICKLE:
        return load_from_safetensors(path, map_location)
    return read_pickle(path, map_location, known=mmengines_types())


def by_this_reader(path: Any) -> str:
    """The name by which mmengine has :func:`load_from_apla_mm` read a local file; others as they are."""
    path = str(path)
    return SCHEME + path if is_local_file(path) and not path.startswith(SCHEME) else path


@CheckpointLoader.register_scheme(prefixes=SCHEME)
def load_from_apla_mm(filename: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a local checkpoint of whatever kind for mmengine, which would refuse a pickle for a path in it, or run it.

    What is of an unknown type beside the weights is left out, and named in the log.

    Args:
        filename: The file, with :data:`~apla_mm.internals.SCHEME` before it.
        map_location: As of ``torch.load``.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, or holds none; says what it seems to be.
    """
    path = Path(without_scheme(filename)).expanduser()
    content = read_checkpoint(path, map_location)
    if not isinstance(content, dict):
        raise ValueError(f"checkpoint '{path}' {_no_checkpoint(content)}")
    content, gone = without_inert(content)
    if isinstance(content.get("meta"), dict):
        content["meta"].pop("config", None)  # a text that mmengine would run as Python
    state = content.get("state_dict", content)
    lost = next((entry for entry in gone if entry.startswith("state_dict ")), "")
    if lost or not isinstance(state, dict) or not state:
        raise ValueError(
            f"checkpoint '{path}' {_WHOLE.format(f'in {lost}') if lost else 'holds no state dict'}"
            f"{f'; it has {first_few(map(printable, content))}' if content else ''}"
        )
    if gone:
        print_log(
            f"checkpoint '{path}': left out {len(gone):,} entries of types that are not known: "
            f"{first_few(map(printable, gone), 4)}",
            logger="current",
        )
    return content


def _no_checkpoint(content: Any) -> str:
    if isinstance(content, Inert):
        return _WHOLE.format(f"of type {printable(content.type_name)}")
    return f"holds a {type(content).__name__}, not a checkpoint"
