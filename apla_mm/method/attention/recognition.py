"""Whether a module of a kind that is not known is an attention: by its children, its code and what it is called."""

import dis
import inspect
import re
from collections.abc import Collection, Iterator, Mapping
from functools import cache
from types import CodeType, FunctionType
from typing import Any

from torch import nn

#: functions that compute an attention
_FUSED = re.compile(
    r"scaled_dot_product|flash_attn|multi_head_attention_forward|memory_efficient_att|flex_att|natten|na2d"
)
_PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "mm"}
_MAKER = r"^(to_?|w_?|in_?|lin(ear)?_?|proj_?)?({})s?(_?(proj|lin|linear|conv|dw|embed|net))?$"
#: names of children that make q, or k, or both
_MAKES_Q, _MAKES_K, _MAKES_BOTH = (re.compile(_MAKER.format(made)) for made in ("q|query|querie", "k|key|kv", "qk|qkv"))
_MAKES_OUTPUT = re.compile(r"^(out|output|o|to_out|wo)?_?(proj|projection|project|conv|dense)?$")
_CALLED = re.compile(r"attention|attn|msa|mhsa|xca", re.IGNORECASE)
_WEIGHTED = (nn.Linear, nn.modules.conv._ConvNd)


def attends(module: nn.Module, known: Collection[nn.Module] = ()) -> bool:
    """Whether a module computes an attention by itself.

    It does if children of it make q and k; if its class is called so and it holds linear layers; or if its code
    multiplies by a softmax, or calls a fused attention.

    Args:
        module: Any module.
        known: Modules that are attentions: what holds one of these is no attention by its code or by its name alone.
    """
    if type(module).__module__.startswith("torch."):
        return False
    if _makes_q_and_k(module):
        return True
    cls: type = type(module)
    called, computes = bool(_CALLED.search(cls.__name__)), _code_attends(cls)
    if called and any(isinstance(child, nn.Linear) for child in module.children()):
        return True
    if not ((computes and _holds(module, _WEIGHTED)) or (called and _holds(module, nn.Linear))):
        return False
    within = [m for m in module.modules() if m is not module]
    if any(m in known or _makes_q_and_k(m) for m in within):
        return False
    return computes or not any(_CALLED.search(type(m).__name__) for m in within)


def says_attention(
    name: str, module: nn.Module, modules: Mapping[str, nn.Module], known: Collection[nn.Module] = ()
) -> bool:
    """Whether a block, an element of a list or a sequence, calls a module its attention.

    Args:
        name: The module's name in the model.
        module: The module.
        modules: All of the model's by name.
        known: Modules that are attentions; what holds one of these is none itself.
    """
    block, _, own = name.rpartition(".")
    above = modules.get(block.rpartition(".")[0]) if block else None
    if not isinstance(above, nn.ModuleList | nn.Sequential) or not _CALLED.search(own):
        return False
    within = list(module.modules())
    linear = sum(isinstance(m, nn.Linear) for m in within) > isinstance(module, nn.Linear)
    return linear and not any(m in known or attends(m, known) for m in within)


def why_none(attention: nn.Module) -> str:
    """Why an attention that is not known cannot have a projection that trains; empty if it may have one."""
    for name, child in attention.named_children():
        if _MAKES_OUTPUT.match(name) and _holds(child, nn.modules.conv._ConvNd) and not _holds(child, nn.Linear):
            return f"its W_O, '{name}', is a convolution"
    return "" if any(_holds(child, nn.Linear) for child in attention.children()) else "it holds no nn.Linear"


def reads_weight_of(module: nn.Module, path: str) -> bool:
    """Whether the code of a module uses the weight of a layer of its own, instead of calling the layer.

    Args:
        module: The module.
        path: Of the layer inside it.
    """
    cls: type = type(module)
    return not cls.__module__.startswith("torch.") and _code_reads_weight_of(cls, path.rpartition(".")[2])


@cache
def _code_reads_weight_of(cls: type, name: str) -> bool:
    for code in _codes(cls):
        loads = [i for i in dis.get_instructions(code) if i.opname not in ("CACHE", "PRECALL")]
        for layer, weight, then in zip(loads, loads[1:], loads[2:], strict=False):
            both = layer.opname == weight.opname == "LOAD_ATTR" and (layer.argval, weight.argval) == (name, "weight")
            if both and then.opname != "LOAD_ATTR":  # that would be its dtype, or its device
                return True
    return False


def _holds(module: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> bool:
    return any(isinstance(m, kind) for m in module.modules())


def _makes_q_and_k(module: nn.Module) -> bool:
    names = [name.lower() for name, child in module.named_children() if _holds(child, _WEIGHTED)]
    if any(_MAKES_BOTH.match(name) for name in names):
        return True
    return any(map(_MAKES_Q.match, names)) and any(map(_MAKES_K.match, names))


@cache
def _code_attends(cls: type) -> bool:
    names, products = set(), False
    for code in _codes(cls):
        names |= set(code.co_names)
        products |= any(
            i.opname == "BINARY_MATRIX_MULTIPLY" or (i.opname == "BINARY_OP" and i.argrepr == "@")
            for i in dis.get_instructions(code)
        )
    if any(_FUSED.search(name) for name in names):
        return True
    return any("softmax" in name.lower() for name in names) and (products or bool(names & _PRODUCTS))


def _codes(cls: type) -> Iterator[CodeType]:
    """The code of a module's forward, and of what it calls of its own class and of functions of its package."""
    package = cls.__module__.partition(".")[0]
    waiting: list[Any] = [getattr(cls, "forward", None)]
    seen: set[CodeType] = set()
    while waiting:
        function = inspect.unwrap(waiting.pop())
        function = getattr(function, "__func__", function)
        if not isinstance(function, FunctionType) or function.__code__ in seen:
            continue
        if (function.__module__ or "").partition(".")[0] not in (package, cls.__module__):
            continue
        codes = [function.__code__]
        while codes:
            code = codes.pop()
            seen.add(code)
            yield code
            codes += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
            waiting += [inspect.getattr_static(cls, name, None) for name in code.co_names]
            waiting += [function.__globals__.get(name) for name in code.co_names]
        waiting = [each for each in waiting if callable(each) and not isinstance(each, type)]
