"""The optimizer, and what it takes."""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from inspect import Parameter, signature
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import OPTIMIZERS

from .problems import Problem, find


def optimizer_is_known(cfg: Config) -> Iterator[Problem]:
    """Mmengine's constructor does not say which optimizer it has not found."""
    key = "optim_wrapper.optimizer.type"
    name = find(cfg, key)
    if not isinstance(name, str) or OPTIMIZERS.get(name) is not None:
        return
    near = get_close_matches(name, OPTIMIZERS.module_dict, n=1)
    yield Problem(key, f"there is no optimizer '{name}'", {key: near[0]} if near else {})


def optimizer_takes_its_arguments(cfg: Config) -> Iterator[Problem]:
    """The optimizer takes its arguments, tried on a parameter of its own."""
    key = "optim_wrapper.optimizer"
    settings = find(cfg, key)
    if not isinstance(settings, Mapping) or not isinstance(settings.get("type"), str):
        return
    name, arguments = settings["type"], {key: value for key, value in settings.items() if key != "type"}
    if OPTIMIZERS.get(name) is None or _refusal(name) is not None:
        return  # unknown, or one that needs more than a parameter
    refusal = _refusal(name, **arguments)
    if refusal is None:
        return
    for argument, value in arguments.items():
        others = {key: other for key, other in arguments.items() if key != argument}
        if _refusal(name, **others) is None or _refusal(name, **{argument: value}) is not None:
            where, default = f"{key}.{argument}", _default(name, argument)
            cure, hint = ({where: default}, "") if default is not None else ({}, "leave it out")
            yield Problem(where, f"{name} does not take {value!r}: {refusal}", cure, hint)


def _default(name: str, argument: str) -> Any:
    """What an optimizer takes where nothing is given; None if that is nothing."""
    known = signature(OPTIMIZERS.get(name)).parameters.get(argument)
    return None if known is None or known.default is Parameter.empty else known.default


def _refusal(name: str, **arguments: Any) -> Exception | None:
    """What an optimizer says against arguments."""
    try:
        OPTIMIZERS.build(dict(type=name, params=[torch.nn.Parameter(torch.zeros(1))], **arguments))
    except Exception as error:
        return error
    return None


RULES = [
    optimizer_is_known,
    optimizer_takes_its_arguments,
]
