"""What a file of weights is, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..delta import Delta, DeltaError, base_digests, fingerprint, load_delta
from ..delta.base_file import BASE_FILE, find_base, is_base_name
from ..delta.delta import nonfinite
from ..delta.weights_file import Kind, Weights, kind_of, read_weights
from ..loading.checkpoint_reader import mmengines_types
from ..loading.delta_meta import chosen_in, meta_of
from ..text import first_few, format_bytes, printable
from ..tuning.tuning_hook import METHOD_KEY
from .authors import is_authors, plain_state
from .config_text import summary

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
    if kind is Kind.DELTA:
        delta = load_delta(path, allow_nonfinite=True)
        header, tensors = delta.header, {**delta.rows, **delta.tensors}
        what = f"delta, version {header.version} of the format"
        lines = [*_of_delta(delta, path), *_about(header.config, header.iteration, header.metrics, meta_of(header))]
        lines.append(("versions", ", ".join(f"{name} {version}" for name, version in sorted(header.versions.items()))))
    else:
        weights = read_weights(path, known=mmengines_types())
        what, tensors = _kind(kind, weights), weights.state
        lines = [*_of_state(weights, kind), *_of_rest(weights)]
    lines.append(("NOT FINITE", first_few(nonfinite(tensors), 3)))
    lines = [("kind", what), ("size", format_bytes(path.stat().st_size)), *lines]
    shown = (f"  {label:<{_WIDTH}}{_printable(text)}" for label, text in lines if text)
    return "\n".join([_printable(str(path)), *shown])


def _kind(kind: Kind, weights: Weights) -> str:
    if is_authors(weights.state):
        return "checkpoint of the APLA authors' code: projections in two parts"
    if kind is not Kind.PICKLE:
        return kind.value
    return "full checkpoint of mmengine" if weights.meta else "pickled weights, without mmengine's 'meta'"


def _of_delta(delta: Delta, path: Path) -> _Lines:
    header = delta.header
    counts = Counter(len(chosen) for chosen in delta.channels.values())
    yield "channels", ", ".join(f"{r} of each of {count} projections" for r, count in sorted(counts.items())) or "none"
    yield "whole tensors", _parts(delta.tensors)
    yield "tensors", _tensors({**delta.rows, **delta.tensors})
    yield "r, seed", f"{header.r}, {header.seed}"
    yield "selection", ", ".join(f"{key}={value}" for key, value in header.selection.items())
    yield "whole base", _base(header.extra.get(BASE_FILE), path)
    yield "not trained", f"{len(header.base)} tensors of the base, fingerprint {header.fingerprint}"


def _of_state(weights: Weights, kind: Kind) -> _Lines:
    yield "tensors", _tensors(weights.state)
    yield "parts", _parts(weights.state)
    digest = fingerprint(base_digests(weights.state, {}))
    yield ("whole base", f"fingerprint {digest}") if kind is Kind.BASE else ("fingerprint", f"{digest}, of all tensors")
    if is_authors(weights.state):
        yield "channels", _authors_channels(weights)


def _of_rest(weights: Weights) -> _Lines:
    yield "also holds", ", ".join(sorted(map(str, weights.rest.keys() - {"meta"})))
    meta = weights.meta
    config, iteration = meta.get("cfg"), meta.get("iter", weights.rest.get("iters"))
    yield "trained", ", ".join(f"{key}={value}" for key, value in _flat(chosen_in(meta)))
    yield from _about(config if isinstance(config, str) else "", iteration, {}, meta)
    yield "versions", f"mmengine {meta['mmengine_version']}" if "mmengine_version" in meta else ""


def _about(config: str, iteration: Any, metrics: Mapping[str, Any], meta: Mapping[str, Any]) -> _Lines:
    method = meta.get(METHOD_KEY)
    yield "method", ", ".join(f"{key}={value}" for key, value in method.items()) if isinstance(method, dict) else ""
    yield "iteration", "" if iteration is None else str(iteration)
    yield "metrics", ", ".join(f"{name} {value}" for name, value in metrics.items())
    lines = len(config.splitlines())
    yield "config", f"{summary(config) or 'unknown'} ({lines} lines)" if config else ""
    dataset = meta.get("dataset_meta")
    classes = dataset.get("classes") if isinstance(dataset, dict) else None
    if isinstance(classes, list | tuple):
        yield "classes", f"{len(classes)}: {first_few(classes)}"
    yield "experiment", str(meta.get("experiment_name", ""))
    yield "saved", str(meta.get("time", ""))


def _base(name: Any, path: Path) -> str:
    if name is None:
        return "none is named: a model or checkpoint that holds the base is needed"
    try:
        return f"{_identity(name)}{name}, found: {find_base(name, path)}"
    except DeltaError as error:
        return f"{_identity(name)}{name}, NOT FOUND: {error}"


def _identity(name: Any) -> str:
    """What a base file is named by: the beginning of the fingerprint that is shown for the file itself."""
    return f"fingerprint {name[5:21]}..., file " if isinstance(name, str) and is_base_name(name) else ""


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
    return first_few((f"{name} {format_bytes(size)}" for name, size in sizes.most_common()), 6)


def _flat(chosen: Mapping[str, Any]) -> _Lines:
    every = {key: value for key, value in chosen.items() if key != "selection"} | chosen["selection"]
    return [(key, value) for key, value in every.items() if value not in (None, [], {})]


def _printable(text: str) -> str:
    """Text from a file on one line."""
    return printable(" ".join(text.split()))
