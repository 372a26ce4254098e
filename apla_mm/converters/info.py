"""What a file of weights is, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint import Delta, DeltaError, base_digests, fingerprint, load_delta
from ..checkpoint.base_file import BASE_FILE, find_base
from ..engine.packed_state import META
from .authors import is_authors, plain_state, read_authors
from .config_text import summary
from .files import DELTA, PICKLE, PLAIN, Weights, kind_of

_Lines = Iterable[tuple[str, str]]
_WIDTH = 14


def describe(path: Path) -> str:
    """Say what a checkpoint, a delta, a base file or another safetensors file holds.

    Nothing in the file is run: pickles are read for tensors and plain values alone.

    Args:
        path: The file.

    Returns:
        Lines of text.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is damaged, or holds other objects.
    """
    path = Path(path)
    kind = kind_of(path)
    if kind == DELTA:
        delta = load_delta(path, allow_nonfinite=True)
        lines = [("kind", f"delta, version {delta.header.version} of the format"), _size(path), *_of_delta(delta, path)]
    else:
        weights = read_authors(path)
        lines = [("kind", _kind(kind, weights)), _size(path), *_of_weights(weights, kind)]
    shown = (f"  {label:<{_WIDTH}}{_printable(text)}" for label, text in lines if text)
    return "\n".join([_printable(str(path)), *shown])


def _kind(kind: str, weights: Weights) -> str:
    if is_authors(weights.state):
        return "checkpoint of the APLA authors' code: projections in two parts"
    if kind != PICKLE:
        return kind
    return "full checkpoint of mmengine" if weights.meta else "pickled weights, without mmengine's 'meta'"


def _size(path: Path) -> tuple[str, str]:
    return "size", _bytes(path.stat().st_size)


def _of_delta(delta: Delta, path: Path) -> _Lines:
    header = delta.header
    counts = Counter(len(chosen) for chosen in delta.channels.values())
    yield "channels", ", ".join(f"{r} of each of {count} projections" for r, count in sorted(counts.items())) or "none"
    yield "whole tensors", _parts(delta.tensors)
    yield "tensors", _tensors({**delta.rows, **delta.tensors})
    yield "r, seed", f"{header.r}, {header.seed}"
    yield "selection", ", ".join(f"{key}={value}" for key, value in header.selection.items())
    yield "base", f"{len(header.base)} tensors, fingerprint {header.fingerprint}"
    yield "base file", _found(header.extra.get(BASE_FILE), path)
    meta = header.extra.get(META)
    yield from _about(header.config, header.iteration, header.metrics, meta if isinstance(meta, dict) else {})
    yield "versions", ", ".join(f"{name} {version}" for name, version in sorted(header.versions.items()))
    if wrong := [name for name, t in {**delta.rows, **delta.tensors}.items() if not _is_finite(t)]:
        yield "NOT FINITE", ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _of_weights(weights: Weights, kind: str) -> _Lines:
    yield "tensors", _tensors(weights.state)
    yield "parts", _parts(weights.state)
    yield "fingerprint", fingerprint(base_digests(weights.state, {}))
    if kind == PLAIN and not weights.rest and not is_authors(weights.state):
        return
    if is_authors(weights.state):
        yield "channels", _authors_channels(weights)
        yield "iteration", str(weights.rest.get("iters", ""))
    yield "also holds", ", ".join(sorted(map(str, weights.rest.keys() - {"meta"})))
    config, iteration = weights.meta.get("cfg"), weights.meta.get("iter")
    yield from _about(config if isinstance(config, str) else "", iteration, {}, weights.meta)
    yield "versions", f"mmengine {weights.meta['mmengine_version']}" if "mmengine_version" in weights.meta else ""
    if wrong := [name for name, tensor in weights.state.items() if not _is_finite(tensor)]:
        yield "NOT FINITE", ", ".join(wrong[:3]) + (f" and {len(wrong) - 3} more" if len(wrong) > 3 else "")


def _about(config: str, iteration: Any, metrics: Mapping[str, Any], meta: Mapping[str, Any]) -> _Lines:
    yield "iteration", "" if iteration is None else str(iteration)
    yield "metrics", ", ".join(f"{name} {value}" for name, value in metrics.items())
    lines = len(config.splitlines())
    yield "config", f"{summary(config) or 'unknown'} ({lines} lines)" if config else ""
    dataset = meta.get("dataset_meta")
    classes = dataset.get("classes") if isinstance(dataset, dict) else None
    if isinstance(classes, list | tuple):
        yield "classes", f"{len(classes)}: {', '.join(map(str, classes[:8]))}{', ...' if len(classes) > 8 else ''}"
    yield "experiment", str(meta.get("experiment_name", ""))
    yield "saved", str(meta.get("time", ""))


def _found(name: Any, path: Path) -> str:
    if name is None:
        return "none is named: a model or checkpoint that holds the base is needed"
    try:
        return f"{name}, found: {find_base(name, path)}"
    except DeltaError as error:
        return f"{name}, NOT FOUND: {error}"


def _authors_channels(weights: Weights) -> str:
    try:
        _, channels = plain_state(weights.state)
    except ValueError as error:
        return f"NOT KNOWN: {error}"
    counts = Counter(len(chosen) for chosen in channels.values())
    return ", ".join(f"{r} of each of {count} projections" for r, count in sorted(counts.items()))


def _tensors(tensors: Mapping[str, Tensor]) -> str:
    dtypes = Counter(str(tensor.dtype).removeprefix("torch.") for tensor in tensors.values())
    names = ", ".join(dtype for dtype, _ in dtypes.most_common())
    return f"{len(tensors)}, of {sum(tensor.numel() for tensor in tensors.values()):,} values: {names}"


def _parts(tensors: Mapping[str, Tensor]) -> str:
    """Sizes of what lies below the first names."""
    sizes: Counter[str] = Counter()
    for name, tensor in tensors.items():
        sizes[name.partition(".")[0]] += tensor.nbytes
    shown = ", ".join(f"{name} {_bytes(size)}" for name, size in sizes.most_common(6))
    return shown + (f" and {len(sizes) - 6} more" if len(sizes) > 6 else "")


def _bytes(size: int) -> str:
    return f"{size / 2**20:.2f} MiB" if size >= 2**20 else f"{size / 2**10:.1f} KiB"


def _is_finite(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def _printable(text: str) -> str:
    """Text from a file on one line, without what a terminal would obey."""
    text = " ".join(text.split())
    return text if text.isprintable() else ascii(text)[1:-1]
