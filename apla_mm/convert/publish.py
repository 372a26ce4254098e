"""Files as OpenMMLab publishes them: without what only training needs, and named by date and content."""

import datetime
import hashlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..delta import load_delta
from ..delta.atomic_file import write_atomic
from ..delta.delta import check_finite
from ..delta.weights_file import Kind, kind_of, read_weights
from ..loading.checkpoint_reader import mmengines_types
from ..loading.delta_meta import BASE_KEY
from ..text import listed
from .authors import is_authors
from .files import check_output, checkpoint_bytes

_OF_RESUMING = ("apla_mm", BASE_KEY)  # in ``meta``


def publish(
    path: Path, out: Path, *, date: datetime.date | None = None, force: bool = False, allow_nonfinite: bool = False
) -> Path:
    """Write a checkpoint or a delta for others to use.

    Of a checkpoint the state dict and ``meta`` are kept: not the optimizer, the schedulers, the message hub, the second
    weights of a mean and what a resumed run is compared by. Deltas and safetensors files hold nothing else and are
    copied.

    Args:
        path: The checkpoint, delta or safetensors file.
        out: What the new file's name begins with; a suffix is left out.
        date: In the name; today's by default.
        force: Whether a file of this name may be overwritten.
        allow_nonfinite: Whether tensors may hold NaN and infinity.

    Returns:
        The new file, ``<out>_<yyyymmdd>-<first 8 digits of its SHA-256>.pth`` or ``.safetensors``.

    Raises:
        FileNotFoundError: There is no such file.
        FileExistsError: The new file is there already.
        ValueError: It is damaged, holds NaN or infinity, or is of a kind that is not published.
        OSError: It cannot be written; nothing is left of it.
    """
    path, out = Path(path), Path(out)
    kind = kind_of(path)
    if kind is Kind.BASE:
        raise ValueError(f"'{path}' is a base file, which deltas name: publish it under the name that it has")
    data: bytes | memoryview
    if kind is Kind.PICKLE:
        weights = read_weights(path, known=mmengines_types())
        if is_authors(weights.state):
            raise ValueError(
                f"'{path}' is of the APLA authors' code, and no plain model loads it: convert it first, by "
                f"apla-mm import-apla {path} OUT.pth"
            )
        _check_finite(path, weights.state, allow_nonfinite)
        suffix = ".pth"
        meta = {key: value for key, value in weights.meta.items() if key not in _OF_RESUMING}
        if unknown := [key for key, value in meta.items() if not _can_be_written(value)]:
            raise ValueError(f"'{path}' holds objects of unknown types in its meta: see {listed(unknown)}")
        data = checkpoint_bytes(suffix, weights.state, meta)
    else:
        if kind is Kind.DELTA:
            load_delta(path, allow_nonfinite=allow_nonfinite)  # whole and well formed
        else:
            _check_finite(path, read_weights(path).state, allow_nonfinite)
        suffix = ".safetensors"
        data = path.read_bytes()
    stem = out.name[: -len(out.suffix)] if out.suffix in (".pth", ".safetensors") else out.name
    day = (date or datetime.date.today()).strftime("%Y%m%d")
    final = out.with_name(f"{stem}_{day}-{hashlib.sha256(data).hexdigest()[:8]}{suffix}")
    check_output(final, force)
    write_atomic(data, final)
    return final


def _can_be_written(value: Any) -> bool:
    try:
        pickle.dumps(value)
    except pickle.PicklingError:  # of what was read without its type
        return False
    return True


def _check_finite(path: Path, state: Mapping[str, Tensor], allow_nonfinite: bool) -> None:
    if allow_nonfinite:
        return
    try:
        check_finite(state)
    except ValueError as error:
        raise ValueError(f"'{path}': {error}") from error
