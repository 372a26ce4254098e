"""What a delta's header records of mmengine's checkpoint, and a checkpoint's ``meta`` out of it."""

import ast
import json
import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.logging import HistoryBuffer, print_log
from torch import Tensor

from ..delta import DeltaError, Header
from ..text import listed

BASE_KEY = "apla_mm_base"  #: of the base file's name in a checkpoint's ``meta``
APLA_KEY = "apla"  #: of what a run was asked for of APLA in a checkpoint's ``meta``
CHANNELS_KEY = "apla_channels"  #: of the channels there, by projection, of a run that has chosen them by score
_META, _VERSIONS = "meta", "module_versions"  # keys in ``header.extra``
_LONGEST_META = 2**20  # characters; longer ones take Python's parser seconds
# the header's own, which mmengine would run as Python; of resuming; what a delta has as tensors
_LEFT_OUT = ("cfg", "config", "apla_mm", APLA_KEY, BASE_KEY, CHANNELS_KEY)


def extra_of(meta: Mapping[str, Any], state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Entries of ``header.extra`` for a checkpoint.

    ``meta`` is kept as the text of a Python literal: data sets' metainfo has tuples, and ints as keys, which JSON has
    not. What has no literal is left out, with a warning.

    Args:
        meta: The checkpoint's.
        state: Its state dict.
    """
    kept, lost = {}, []
    for key, value in meta.items():
        value = _without_arrays(value)
        if key in _LEFT_OUT:
            continue
        if _parsed(repr(value)) == value:
            kept[key] = value
        else:
            lost.append(str(key))
    if lost:
        text = f"a delta cannot hold {listed(lost)} of the checkpoint's meta: not values of plain Python types"
        print_log(text, logger="current", level=logging.WARNING)
    return {_META: repr(kept), _VERSIONS: _versions_of(state)}


def meta_of(header: Header) -> dict[str, Any]:
    """The ``meta`` of the checkpoint that a delta was made of, without what would be run.

    Raises:
        DeltaError: It is damaged.
    """
    text = header.extra.get(_META, "{}")
    meta = _parsed(text) if isinstance(text, str) and len(text) <= _LONGEST_META else None
    if not isinstance(meta, dict):
        raise DeltaError("its header's 'meta' is not the text of a dict: it is damaged")
    return {key: value for key, value in meta.items() if key not in _LEFT_OUT}


def scores_of(checkpoint: Mapping[str, Any]) -> dict[str, float]:
    """The validation's scores, if they are of these weights; what the training loop saves has an earlier one's."""
    hub = checkpoint.get("message_hub")
    if not isinstance(hub, dict) or hub.get("runtime_info", {}).get("loop_stage") != "val":
        return {}
    found = {
        key.removeprefix("val/"): float(history.current())
        for key, history in hub.get("log_scalars", {}).items()
        if key.startswith("val/") and isinstance(history, HistoryBuffer)
    }
    return {key: value for key, value in found.items() if key not in ("time", "data_time")}


def as_json(values: Any) -> Any:
    """Values as JSON has them."""
    return json.loads(
        json.dumps(
            values, default=lambda value: value.tolist() if hasattr(value, "tolist") else str(value), skipkeys=True
        )
    )


def chosen_in(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a checkpoint says that its run was asked for of APLA, as fields of a delta's header: r, seed, selection."""
    chosen = meta.get(APLA_KEY)
    chosen = dict(chosen) if isinstance(chosen, dict) else {}
    r, seed = chosen.pop("r", None), chosen.pop("seed", None)
    return dict(
        r=r if isinstance(r, int | float | str) and not isinstance(r, bool) else None,
        seed=seed if type(seed) is int else None,
        selection=as_json(chosen),
    )


def with_versions(state: Mapping[str, Tensor], header: Header, prefix: str = "") -> "OrderedDict[str, Tensor]":
    """A state dict with its modules' versions, which some modules ask for when they load.

    Args:
        state: A whole state dict.
        header: Of a delta with :func:`extra_of`.
        prefix: Put before all names.
    """
    other = header.extra.get(_VERSIONS)
    other = other if isinstance(other, dict) else {}
    result = OrderedDict((prefix + name, state[name]) for name in sorted(state))
    modules = {module for name in state for module in _modules_of(name)}
    versions = {(prefix + module).rstrip("."): {"version": other.get(module, 1)} for module in modules}
    result._metadata = versions  # type: ignore[attr-defined]  # as torch's own
    return result


def _parsed(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _without_arrays(value: Any) -> Any:
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _without_arrays(entry) for key, entry in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_without_arrays, value))
    return value


def _versions_of(state: Mapping[str, Tensor]) -> dict[str, int]:
    """Versions of modules other than 1, torch's default."""
    metadata: Mapping[str, Any] = getattr(state, "_metadata", {})
    versions = {name: module.get("version") for name, module in metadata.items()}
    return {name: version for name, version in versions.items() if type(version) is int and version != 1}


def _modules_of(name: str) -> Iterator[str]:
    steps = name.split(".")[:-1]
    for depth in range(len(steps) + 1):
        yield ".".join(steps[:depth])
