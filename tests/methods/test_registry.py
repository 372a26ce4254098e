from collections.abc import Iterator
from typing import Any

import pytest
from torch import nn

from apla_mm.methods import METHODS, LoRA, build_method, method_text, read_method, register_method


class Own:
    """A method of a user's own, by its dotted path."""

    def __init__(self, arg: int, words: Any = ()) -> None:
        self.arg, self.words = arg, words

    def prepare(self, backbone: nn.Module) -> None:
        backbone.requires_grad_(False)

    def merge(self, backbone: nn.Module) -> None: ...


@pytest.fixture
def registered() -> Iterator[None]:
    register_method("own", Own)
    yield
    del METHODS["own"]


READ = [
    ("head", dict(type="head")),
    (" lora:r=8 ", dict(type="lora", r=8)),
    ("lora:r=8,layers=qkv", dict(type="lora", r=8, layers="qkv")),
    (["lora:r=8", "layers=qkv"], dict(type="lora", r=8, layers="qkv")),  # as the command line cuts it
    (["lora:r=8", "layers=[qkv,proj]"], dict(type="lora", r=8, layers=["qkv", "proj"])),
    ("lora:alpha=1.5,layers=[*.mlp.*]", dict(type="lora", alpha=1.5, layers=["*.mlp.*"])),
    ("apla:r=full,train_norm=True,seed=None", dict(type="apla", r="full", train_norm=True, seed=None)),
    ("apla:blocks=none", dict(type="apla", blocks="none")),
    ("apla:r=1,blocks=[0,2]", dict(type="apla", r=1, blocks=[0, 2])),
    ("a.b.C:x='1'", dict(type="a.b.C", x="1")),
    (dict(type="lora", r=8), dict(type="lora", r=8)),
    (dict(type=LoRA, r=8), dict(type="apla_mm.methods.lora.LoRA", r=8)),
]


@pytest.mark.parametrize(("given", "expected"), READ)
def test_what_is_written(given: Any, expected: dict[str, Any]) -> None:
    assert read_method(given) == expected
    if "x" not in expected:
        assert read_method(method_text(expected)) == expected


def test_a_dotted_path_and_a_registered_name(registered: None) -> None:
    for name in (f"{__name__}.Own", "own"):
        method = build_method(f"{name}:arg=1,words=[a,b]")
        assert isinstance(method, Own) and (method.arg, method.words) == (1, ["a", "b"])


WRONG = [
    ("lor", "there is no method 'lor'; there are full, head, norm, bitfit, lora, wo, apla, and 'package.module.Class'"),
    ("lora:rank=3", "method 'lora': .*'rank'; it takes r, alpha, layers, seed, recompute"),
    ("head:r=3", "method 'head': .*'r'; it takes nothing"),
    ("lora:", "no argument follows the colon"),
    ("lora:r", "'r' must be KEY=VALUE"),
    ("lora:r=1,r=2", "each key once"),
    ("lora:type=1", "must be KEY=VALUE"),
    ("no.such.Thing", "'no.such.Thing' cannot be imported"),
    ("torch.nn.Thing", "'torch.nn.Thing' cannot be imported"),
    ("torch.nn.Linear", "must be a class with prepare\\(backbone\\) and merge\\(backbone\\)"),
    ("", "must be such as 'lora:r=8'"),
    (3, "method=3 must be such as"),
    (dict(r=3), "must be such as"),
]


@pytest.mark.parametrize(("given", "message"), WRONG)
def test_what_names_no_method_says_what_there_is(given: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_method(given)


def test_names_are_taken_once(registered: None) -> None:
    register_method("own", Own)  # again, as a module that is loaded twice
    for name, method, message in (
        ("lora", Own, "is there already: LoRA"),
        ("a b", Own, "one word"),
        ("x", int, "prepare"),
    ):
        with pytest.raises(ValueError, match=message):
            register_method(name, method)
    assert METHODS["lora"] is LoRA and "x" not in METHODS
