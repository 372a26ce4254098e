"""State dicts without what was frozen, in checkpoints that are resumed."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from ..delta import Delta, DeltaError, Header, base_digests
from ..delta.errors import listed, printable
from ..delta.file import content_digest

EMA, EMA_PREFIX, EMA_OTHERS = "ema_state_dict", "module.", "ema_others"  #: mmengine's; its entries that are no weights
_GROUPS = ("channels", "rows", "tensors")
_VERSIONS = "module_versions"  #: key in ``header.extra``


def delta_of_state(
    state: Mapping[str, Tensor], base: Mapping[str, str], channels: Mapping[str, Tensor], **about: Any
) -> Delta:
    """What of a state dict is not in its base: the channels, what the base lacks, and what moved though it was frozen.

    Args:
        state: A state dict.
        base: Digests of the base's tensors, as of :func:`~apla_mm.delta.base_digests` with ``channels``.
        channels: Of the projections by name, the output channels that train, int64 (r,).
        **about: Fields of :class:`~apla_mm.delta.Header`.

    Returns:
        The delta, copied to the CPU.

    Raises:
        DeltaError: The state dict lacks tensors of the base.
    """
    if missing := base.keys() - state.keys():
        raise DeltaError(f"{listed(missing)} of the base are not in the state dict that is saved")
    found = base_digests({name: state[name] for name in base}, channels)
    same = {name for name, digest in found.items() if digest == base[name]}
    kept = {
        projection: chosen
        for projection, chosen in channels.items()
        if all(name in same for name in _tensors_of(projection, state))
    }
    rows = {name: kept[projection] for projection in kept for name in _tensors_of(projection, state)}
    # the base holds a projection's other rows, of which one that trained whole needs none
    same -= {name for projection in channels.keys() - kept.keys() for name in _tensors_of(projection, state)}
    return Delta(
        channels={projection: chosen.clone() for projection, chosen in kept.items()},
        rows={
            name: state[name].detach().index_select(0, chosen.to(state[name].device)).cpu()
            for name, chosen in rows.items()
        },
        tensors={name: t.detach().to("cpu", copy=True) for name, t in state.items() if name not in same},
        header=Header(base={name: found[name] for name in same}, **about),
    )


def pack(delta: Delta) -> dict[Any, Any]:
    """A delta as plain values, for a checkpoint in a state dict's place.

    The key None makes mmengine fail to load it as a state dict, which would else leave what is frozen at random.
    """
    tensors = {f"{group}/{name}": t for group in _GROUPS for name, t in getattr(delta, group).items()}
    header = json.loads(json.dumps(asdict(delta.header)))  # as it will be read
    return {None: json.dumps(dict(header=header, sha256=content_digest(header, tensors))), **tensors}


def is_packed(state: Any) -> bool:
    """Whether something in a state dict's place was made by :func:`pack`."""
    return isinstance(state, Mapping) and None in state


def unpack(packed: Mapping[Any, Any], source: str) -> Delta:
    """The delta again.

    Args:
        packed: Of :func:`pack`.
        source: The checkpoint's file, for messages.

    Raises:
        DeltaError: It is damaged.
    """
    groups: dict[str, dict[str, Tensor]] = {group: {} for group in _GROUPS}
    try:
        about = json.loads(packed[None])
        if not (isinstance(about, dict) and isinstance(about.get("header"), dict)):
            raise DeltaError("its header is not a JSON object: it is damaged")
        header = Header.from_json(about["header"])
        tensors = {key: tensor for key, tensor in packed.items() if key is not None}
        for key, tensor in tensors.items():
            group, _, name = str(key).partition("/")
            if group not in groups or not isinstance(tensor, Tensor):
                raise DeltaError(f"{listed([str(key)])} is neither of channels, rows nor tensors: it is damaged")
            groups[group][name] = tensor
        if content_digest(about["header"], tensors) != about.get("sha256"):
            raise DeltaError("its SHA-256 is not the one it names: it is damaged")
        delta = Delta(**groups, header=header, source=source)
        delta.check(allow_nonfinite=True)
    except DeltaError as error:
        raise DeltaError(f"checkpoint '{source}': {error}") from error
    except (TypeError, ValueError, RecursionError) as error:
        raise DeltaError(
            f"checkpoint '{source}': its header is not JSON ({printable(error)}): it is damaged"
        ) from error
    return delta


def _tensors_of(projection: str, state: Mapping[str, Tensor]) -> list[str]:
    return [name for kind in ("weight", "bias") if (name := f"{projection}.{kind}") in state]
