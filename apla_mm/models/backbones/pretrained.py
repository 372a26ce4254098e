"""Pretrained weights of a backbone out of whatever file they lie in."""

import logging
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ...delta.other_files import is_npz
from ...delta.pickles import Inert, read_pickle
from ...delta.weights_file import Kind, kind_of, read_weights
from ...text import first_few, listed, printable
from .timm_keys import TimmState, to_timm_keys

#: under which keys one training run keeps the same network, averaged or not: the first that is there is taken
_SAME_NETWORK = ("state_dict_ema", "model_ema", "state_dict", "model", "ema_state_dict")
_DEEPEST = 4  # dicts in dicts, and steps of a prefix
_MOST = 6  # that an error lists


@dataclass(frozen=True)
class Source:
    """What ``APLAViT(pretrained=...)`` names.

    Attributes:
        checkpoint: The file.
        key: Of the dict in it that holds the weights; None for whichever fits.
        prefix: Of the keys in that dict that are the backbone's; None for whichever fits.
    """

    checkpoint: Path
    key: str | None = None
    prefix: str | None = None

    @classmethod
    def of(cls, pretrained: str | Path | Mapping[str, Any]) -> "Source":
        """Of a path, or of a dict of these attributes.

        Raises:
            ValueError: The dict has others, or lacks the file.
        """
        if isinstance(pretrained, str | Path):
            return cls(Path(pretrained))
        given = dict(pretrained)
        names = ("checkpoint", "key", "prefix")
        wrong = [name for name in given if name not in names]
        wrong += [name for name, value in given.items() if not isinstance(value, str | Path | None)]
        if wrong or not given.get("checkpoint"):
            raise ValueError(
                f"pretrained={given}: as a dict it has a checkpoint, and a key and a prefix in it if need be: "
                "dict(checkpoint='dino.pth', key='teacher', prefix='backbone.')"
            )
        prefix = given.get("prefix")
        if prefix and not prefix.endswith("."):
            prefix += "."
        return cls(Path(given["checkpoint"]), given.get("key"), prefix)

    def __str__(self) -> str:
        parts = dict(checkpoint=str(self.checkpoint), key=self.key, prefix=self.prefix)
        given = {name: value for name, value in parts.items() if value is not None}
        told = ", ".join(f"{name}='{value}'" for name, value in given.items())
        return f"pretrained='{self.checkpoint}'" if len(given) == 1 else f"pretrained=dict({told})"


@dataclass(frozen=True)
class _Reading:
    """One way to read a file: a dict in it, and a prefix of the keys in that."""

    key: str
    prefix: str
    state: dict[str, Tensor]

    def __str__(self) -> str:
        return f"key='{printable(self.key)}', prefix='{printable(self.prefix)}'"


def read_pretrained(
    source: Source, vit: nn.Module, create: Callable[[], nn.Module], model_name: str = "the model"
) -> dict[str, Tensor]:
    """Read the weights of a model from a file of whatever kind, on the CPU; nothing in it is run.

    The weights may lie in dicts in the file, beside others, with prefixes before their keys, and in a model that was
    pickled whole. What of it fits is found out by the names and shapes of the model. A decoder and heads beside an
    encoder are left out. Archives of NumPy (``.npz``) of Google's ViTs are read by timm.

    Args:
        source: The file, and what in it.
        vit: The model. It stays as it is.
        create: Makes another one.
        model_name: What errors call it.

    Returns:
        The model's names to tensors.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged or a delta, nothing in it fits, or several things do: lists what it holds.
    """
    try:
        if is_npz(source.checkpoint):
            return _read_npz(source.checkpoint, create())
        dicts = dict(_dicts(_content(source.checkpoint)))
    except (FileNotFoundError, ValueError) as error:
        raise type(error)(f"pretrained: {error}") from error
    own = vit.state_dict()
    readings = list(_readings(dicts, source, len(own)))
    if not readings:
        raise ValueError(f"{source}: there is no such {'key' if source.prefix is None else 'prefix'}; {_holds(dicts)}")
    reading, fit = _choose(source, [(one, to_timm_keys(one.state, vit)) for one in readings], dicts, model_name)
    if reading.key or reading.prefix or fit.left_out:
        left = f"; left out: {listed(fit.left_out, 4)}" if fit.left_out else ""
        _log(f"'{source.checkpoint}' is read with {reading}{left}")
    return fit.state


def _log(text: str) -> None:
    if "mmengine" not in sys.modules:  # a backbone alone does without it
        logging.getLogger(__name__).info(text)
        return
    from mmengine.logging import print_log

    print_log(text, logger="current")


def _choose(
    source: Source, tried: list[tuple[_Reading, TimmState]], dicts: Mapping[str, Any], model_name: str
) -> tuple[_Reading, TimmState]:
    fitting: list[tuple[_Reading, TimmState]] = []
    for one, fit in tried:  # short prefixes come first; timm takes off some itself
        same = any(one.key == other.key and one.prefix.startswith(other.prefix) for other, _ in fitting)
        if not fit.misfit and not same:
            fitting.append((one, fit))
    keys = [one.key.rpartition(".")[2] for one, _ in fitting]
    if len(fitting) > 1 and len(set(keys)) == len(keys) and set(keys) <= set(_SAME_NETWORK):
        fitting = [min(fitting, key=lambda pair: _SAME_NETWORK.index(pair[0].key.rpartition(".")[2]))]
    if len(fitting) > 1:
        raise ValueError(
            f"{source}: {len(fitting)} sets of weights in it fit. Say which: pretrained=dict(checkpoint="
            f"'{source.checkpoint}', key=..., prefix=...) with {first_few((one for one, _ in fitting), _MOST, '; or ')}"
        )
    if not fitting:
        one, fit = max(tried, key=lambda pair: pair[1].found)
        read = f", read with {one}," if one.key or one.prefix else ""
        raise ValueError(f"{source}{read} does not fit '{model_name}': {fit.misfit}; {_holds(dicts)}")
    return fitting[0]


def _content(path: Path) -> Any:
    """What a file holds.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, or a delta.
    """
    kind = kind_of(path)
    if kind is Kind.DELTA:
        raise ValueError(
            f"'{path}' is a delta, of which load_from takes all; or name a plain checkpoint that "
            "apla-mm merge DELTA OUT.pth makes of it"
        )
    if kind is not Kind.PICKLE:
        return read_weights(path).state
    content = read_pickle(path)
    if not any(_dicts(content)):
        raise ValueError(f"'{path}' holds no state dict{_instead(content)}")
    return content


def _instead(content: Any) -> str:
    """What a file holds in place of weights."""
    if isinstance(content, Inert):
        return f", but an object of type {printable(content.type_name)}: where its code is, torch.save its state_dict()"
    if not isinstance(content, Mapping):
        return f", but a {type(content).__name__}"
    if "param_groups" in content:
        return ", but the state of an optimizer alone: name the file of the weights that was saved with it"
    inert = [f"{key} ({value.type_name})" for key, value in content.items() if isinstance(value, Inert)]
    if inert:
        return f"; {listed(inert, 4)} are whole objects: where their code is, torch.save their state_dict()"
    return f"; it has {listed(content, 8)}" if content else ", and nothing else"


def _dicts(value: Any, key: str = "", depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The dicts of tensors in what was read, by their keys, and whole modules as such."""
    if isinstance(value, Inert):
        value = dict(_state_of(value))
    if not isinstance(value, Mapping) or depth > _DEEPEST:
        return
    named = {name: entry for name, entry in value.items() if isinstance(name, str)}
    if tensors := {name: entry for name, entry in named.items() if isinstance(entry, Tensor)}:
        yield key, tensors
    for name, entry in named.items():
        if isinstance(entry, Mapping | Inert):
            yield from _dicts(entry, f"{key}.{name}" if key else name, depth + 1)


def _state_of(module: Inert, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """The state dict of a module that was pickled whole, and not made."""
    parts = module.state
    if depth > 40 or not isinstance(parts, dict) or not isinstance(parts.get("_modules"), dict):
        return
    volatile = parts.get("_non_persistent_buffers_set") or ()
    for kind in ("_parameters", "_buffers"):
        tensors = parts.get(kind)
        for name, tensor in (tensors if isinstance(tensors, dict) else {}).items():
            if isinstance(tensor, Tensor) and isinstance(name, str) and name not in volatile:
                yield prefix + name, tensor.detach()
    for name, child in parts["_modules"].items():
        if isinstance(child, Inert) and isinstance(name, str):
            yield from _state_of(child, f"{prefix}{name}.", depth + 1)


def _readings(dicts: Mapping[str, dict[str, Tensor]], source: Source, size: int) -> Iterator[_Reading]:
    """The ways to read a file, of which each has at least half as many tensors as the model, if any has."""
    found = []
    for key, tensors in dicts.items():
        if source.key is not None and key != source.key and not key.startswith(f"{source.key}."):
            continue
        prefixes = _prefixes(tensors) if source.prefix is None else [source.prefix]
        for prefix in prefixes:
            state = {name.removeprefix(prefix): one for name, one in tensors.items() if name.startswith(prefix)}
            if state:
                found.append(_Reading(key, prefix, state))
    enough = min(size / 2, max((len(one.state) for one in found), default=0))
    yield from (one for one in found if len(one.state) >= enough)


def _prefixes(names: Mapping[str, Any]) -> list[str]:
    """All beginnings of names that end with a dot, short ones first."""
    found = {""}
    for name in names:
        steps = name.split(".")[:-1]
        found |= {".".join(steps[:i]) + "." for i in range(1, min(len(steps), _DEEPEST) + 1)}
    return sorted(found, key=lambda prefix: (prefix.count("."), prefix))


def _holds(dicts: Mapping[str, Mapping[str, Any]]) -> str:
    """The dicts of tensors in a file, how many there are in each, and how their names begin, as text."""
    parts = []
    for key, tensors in sorted(dicts.items(), key=lambda item: -len(item[1])):
        starts = Counter(re.split(r"(?<=\.)", printable(name))[0] for name in tensors).most_common(_MOST)
        told = ", ".join(f"{start[:60]} {count:,}" for start, count in starts)
        parts.append(f"key='{printable(key)[:100]}' ({len(tensors):,} tensors: {told})")
    return (
        f"the file has {first_few(parts, _MOST, '; ')}; another part of it is taken by pretrained=dict(checkpoint="
        "..., key=..., prefix=...)"
    )


def _read_npz(path: Path, vit: Any) -> dict[str, Tensor]:
    """What timm reads of an archive of a ViT that Google has published.

    Raises:
        ValueError: timm cannot, it lacks something of the model, or has more blocks.
    """
    load = getattr(vit, "load_pretrained", None)
    if load is None:
        raise ValueError(
            f"'{path}' is an archive of NumPy's arrays, which timm does not read for a {type(vit).__name__}"
        )
    with torch.no_grad():
        for parameter in vit.parameters():
            parameter.fill_(torch.nan)  # and stays, if it is not in the file
    try:
        load(str(path))
    except Exception as error:  # of names and shapes that are not there
        raise ValueError(
            f"'{path}' is an archive of NumPy's arrays, and timm cannot read it as a ViT of Google's of this size "
            f"({type(error).__name__}: {printable(error)})"
        ) from error
    state = vit.state_dict()
    missing = [name for name, parameter in vit.named_parameters() if parameter.isnan().any()]
    with np.load(path, allow_pickle=False) as arrays:
        blocks = {int(i) for name in arrays.files for i in re.findall(r"encoderblock_(\d+)/", name)}
    if missing or (blocks and len(blocks) != len(vit.blocks)):
        told = f"{len(missing)} missing: {', '.join(missing[:4])}" if missing else f"it has {len(blocks)} blocks"
        raise ValueError(f"'{path}' does not fit the model: {told}")
    return state
