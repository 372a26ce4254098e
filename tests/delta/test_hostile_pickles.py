"""Pickles that would run something when they are read: nothing of it is run."""

import argparse
import contextlib
import os
import pickle
import subprocess
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from apla_mm.delta.pickles import read_pickle
from apla_mm.loading.checkpoint_reader import mmengines_types

W = torch.arange(6.0).reshape(2, 3)


@pytest.fixture(autouse=True)
def _as_torch_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def _what_torch_may_make_stays() -> Iterator[None]:
    before = set(torch.serialization.get_safe_globals())
    yield
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Path]:
    """Writes what is given beside weights, in either of torch's formats."""

    def write(value: Any, **more: Any) -> Path:
        content = dict(state_dict=dict(w=W), value=value)
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=request.param, **more)
        return tmp_path / "c.pth"

    return write


def value_in(path: Path) -> Any:
    read = read_pickle(path)
    assert torch.equal(read["state_dict"]["w"], W)
    return read["value"]


class Filled(dict):
    pass


class Call:
    """Is pickled as a call of a function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None, items: list | None = None) -> None:
        self.function, self.arguments, self.state, self.items = function, arguments, state, items

    def __call__(self) -> None:
        pass

    def __reduce__(self) -> Any:
        return self.function, self.arguments, self.state, None, iter(self.items) if self.items else None


def chain(*names: str) -> Any:
    """A module's attribute, its attribute and so on, as pickles can name them without importing the module."""
    found = Call(__import__, names[0])
    for name in names[1:]:
        found = Call(getattr, found, name)
    return found


HOSTILE: dict[str, Callable[[Path], Any]] = {
    "os.system": lambda marker: Call(os.system, f"echo > '{marker}'"),
    "subprocess.Popen": lambda marker: Call(subprocess.Popen, ["touch", str(marker)]),
    "subprocess.run": lambda marker: Call(subprocess.run, ["touch", str(marker)]),
    "eval": lambda marker: Call(eval, f"open({str(marker)!r}, 'w')"),
    "exec": lambda marker: Call(exec, f"open({str(marker)!r}, 'w')"),
    "open": lambda marker: Call(open, str(marker), "w"),
    "Path.touch": lambda marker: Call(Path.touch, marker),
    "method of a path": lambda marker: Call(Call(getattr, marker, "touch")),
    "chain": lambda marker: Call(chain("os", "system"), f"echo > '{marker}'"),
    "longer chain": lambda marker: Call(chain("pathlib", "Path", "touch"), marker),
    "chain from a class": lambda marker: Call(
        Call(getattr, Call(getattr, Path, "touch"), "__call__"), marker
    ),
    "numpy": lambda marker: Call(np.ndarray.tofile, np.ones(1), str(marker)),
    "torch.save": lambda marker: Call(torch.save, 1, str(marker)),
    "torch.hub": lambda marker: Call(torch.hub.os.mkdir, str(marker)),
    "runs by its state": lambda marker: Call(
        argparse.Namespace, state=Call(eval, f"dict(a=open({str(marker)!r}, 'w'))")
    ),
}  # fmt: skip
PLACES: dict[str, Callable[[Any], Any]] = {
    "alone": lambda value: value,
    "in a dict": lambda value: dict(a=value),
    "in a list": lambda value: [1, [value]],
    "in what is filled": lambda value: Filled(a=deque([value]), b=OrderedDict()),
    "in a state": lambda value: argparse.Namespace(a=(value,)),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_run(save: Callable[..., Path], tmp_path: Path, name: str, place: str) -> None:
    marker = tmp_path / "marker"
    path = save(PLACES[place](HOSTILE[name](marker)))
    for known in ((), mmengines_types()):
        try:
            read = read_pickle(path, known=known)
        except ValueError as error:
            assert str(error).startswith(f"'{path}' cannot be read: ")
        else:
            assert torch.equal(read["state_dict"]["w"], W)
        assert not marker.exists()
    if place == "alone":  # this test wrote the file: it is hostile indeed
        with contextlib.suppress(Exception):
            made = torch.load(path, weights_only=False)["value"]
            if isinstance(made, subprocess.Popen):
                made.wait()
        assert marker.exists()


def test_what_would_run_is_told(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"c\.pth' cannot be read: it would run '(posix|nt)\.system', .* do not trust it"
    ):
        read_pickle(save(HOSTILE["os.system"](tmp_path / "marker")))
    read = value_in(save([HOSTILE[name](tmp_path / "marker") for name in ("subprocess.Popen", "eval", "exec")]))
    assert [one.type_name for one in read] == ["commands.Popen", "builtins.eval", "builtins.exec"]


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_is_run_of_other_protocols(save: Callable[..., Path], tmp_path: Path, name: str, protocol: int) -> None:
    path = save(HOSTILE[name](tmp_path / "marker"), pickle_protocol=protocol)
    try:
        assert torch.equal(read_pickle(path)["state_dict"]["w"], W)
    except ValueError as error:
        assert str(error).startswith(f"'{path}' cannot be read: ")
    assert not (tmp_path / "marker").exists()


class Victim:
    """Whose globals and attributes a pickle might reach for."""

    def method(self) -> None:
        pass


POISONED: list[Any] = []


@pytest.mark.parametrize(
    "value",
    [
        Call(getattr, Victim.method, "__globals__", items=[("POISONED", 1)]),
        Call(getattr, Call(getattr, Victim, "method"), "__globals__", items=[("POISONED", 1)]),
        Call(getattr, Victim, "__dict__", items=[("POISONED", 1)]),
        Call(setattr, Victim, "POISONED", 1),
        Call(getattr, torch.nn.Linear.forward, "__globals__", items=[("POISONED", 1)]),
    ],
)
@pytest.mark.parametrize("known", [(), mmengines_types()], ids=["none known", "mmengine's known"])
def test_nothing_is_reached(save: Callable[..., Path], value: Any, known: list[Any]) -> None:
    with contextlib.suppress(ValueError):
        read_pickle(save(value), known=known)
    assert POISONED == [] and not hasattr(Victim, "POISONED")
    assert "POISONED" not in torch.nn.Linear.forward.__globals__


def test_what_others_allow_is_not_made_either(
    save: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As code that read older checkpoints of mmengine does, or a switch of torch's."""
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    marker = tmp_path / "marker"
    path = save([HOSTILE[name](marker) for name in ("subprocess.Popen", "eval", "Path.touch")])
    with torch.serialization.safe_globals([(subprocess.Popen, "commands.Popen"), eval, getattr, Path.touch, Filled]):
        before = set(torch.serialization.get_safe_globals())
        popen, *others = value_in(path)  # protocol 2 has the names of Python 2
        assert popen.type_name == "commands.Popen" and others[0].type_name == "builtins.eval"
        assert type(value_in(save(Filled(a=1)))) is OrderedDict
        assert set(torch.serialization.get_safe_globals()) == before
    assert not marker.exists()


def test_errors_quote_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    content = pickle.dumps(Call(os.system, "x"), protocol=2).replace(b"cposix\nsystem", b"cposix\n\x1b[31msystem")
    magic = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    (tmp_path / "c.pth").write_bytes(b"".join([*(pickle.dumps(part, protocol=2) for part in magic), content]))
    with pytest.raises(ValueError, match=r"it would run 'posix\.\\x1b\[31msystem'"):
        read_pickle(tmp_path / "c.pth")


def test_this_file_s_calls_are_what_they_seem() -> None:
    assert pickle.loads(pickle.dumps(Call(eval, "1 + 1"), protocol=2)) == 2
    assert pickle.loads(pickle.dumps(Call(chain("math", "floor"), 1.5), protocol=2)) == 1
