"""The tuning method of a config, by one key."""

from collections.abc import Mapping
from typing import Any

from mmengine.config import Config

from ..methods import APLA, build_method, read_method
from .known_keys import merge_options

#: arguments of APLAHook that the backbone's own ``apla`` does not take
HOOK_ALONE = ("target", "train_norm", "train_bias", "train_pos_embed", "frozen_eval", "drop_path")
#: arguments of every hook that says what trains
CHECKS = ("depth", "prove", "patience")
_HOOKS = ("APLAHook", "TuningHook")


def take_method(cfg: Config, options: Mapping[str, Any]) -> dict[str, Any]:
    """Carry out the key ``method`` of a config, or of options, in place; the config is left without it.

    Args:
        cfg: The config, as its file says.
        options: The options as given: ``method``, or parts of the file's, as ``method.r``.

    Returns:
        The other options.

    Raises:
        ValueError: See :func:`set_method`.
    """
    others = {key: value for key, value in options.items() if key.partition(".")[0] != "method"}
    merge_options(cfg, {key: value for key, value in options.items() if key not in others})
    if (method := cfg.pop("method", None)) is not None:
        set_method(cfg, method)
    return others


def set_method(cfg: Config, given: Any) -> None:
    """Have a config train by another method, in place.

    APLAViT's ``apla`` and ``frozen`` are set or removed, and the config's APLAHook or TuningHook becomes the method's
    hook, with the target and the checks that it had; without one the method's is added.

    Args:
        cfg: The config.
        given: The method, as :func:`apla_mm.methods.read_method` reads it; of ``apla`` everything that APLAHook takes.

    Raises:
        ValueError: There is no such method, or it takes no such argument, or the config has several such hooks. The
            config is as it was.
    """
    method = read_method(given)
    further = {key: method.pop(key) for key in (*HOOK_ALONE, *CHECKS) if key in method and method["type"] == "apla"}
    is_apla = isinstance(build_method(method), APLA)
    hooks = [dict(hook) if isinstance(hook, dict) else hook for hook in cfg.get("custom_hooks") or []]
    places = [i for i, hook in enumerate(hooks) if isinstance(hook, dict) and hook.get("type") in _HOOKS]
    if len(places) > 1:
        raise ValueError(
            f"method={given!r}: the config has {len(places)} hooks that say what trains "
            f"({', '.join(hooks[i]['type'] for i in places)}): leave method out and set each of them"
        )
    place = places[0] if places else len(hooks)
    before = hooks[place] if places else {}
    kept = {key: before[key] for key in CHECKS if key in before}
    target = {"target": before["target"]} if "target" in before else {}
    backbone = cfg.get("model", {}).get("backbone") or {}
    adapts_itself = backbone.get("type") == "APLAViT" and is_apla and not target and not set(HOOK_ALONE) & set(further)
    if adapts_itself:
        arguments = {key: value for key, value in method.items() if key != "type"}
        hook = dict(type="APLAHook", **{**kept, **further})
    elif is_apla:
        hook = {**method, "type": "APLAHook", **target, **kept, **further}
    else:
        hook = dict(type="TuningHook", method=method, **target, **kept)
    if is_apla and not {"r", "channels", "blocks"} & method.keys():
        raise ValueError(f"method={given!r}: apla needs r, channels or blocks, as in 'apla:r=64' or 'apla:r=full'")
    for key in ("apla", "frozen"):
        backbone.pop(key, None)
    if adapts_itself:
        backbone["apla"] = arguments
    hooks[place : place + 1] = [hook]
    cfg.custom_hooks = hooks
