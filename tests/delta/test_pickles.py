"""Pickled checkpoints: what is read of them, what is refused, and that nothing in them is run."""

import argparse
import datetime
import enum
import os
import pickle
import sys
import threading
import zoneinfo
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from torch import nn

from apla_mm.delta.pickles import Inert, read_pickle
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


def value_in(path: Path, **options: Any) -> Any:
    read = read_pickle(path, **options)
    assert read.keys() == {"state_dict", "value"} and torch.equal(read["state_dict"]["w"], W)
    return read["value"]


# what is read


def test_tensors(save: Callable[..., Path]) -> None:
    whole = torch.arange(12.0)
    tensors = dict(
        half=torch.ones(2, dtype=torch.bfloat16),
        integer=torch.tensor(7),
        empty=torch.empty(0, 3),
        part=whole[2:8:2],
        turned=whole.reshape(3, 4).T,
        parameter=nn.Parameter(torch.ones(3)),
        frozen=nn.Parameter(torch.ones(3), requires_grad=False),
    )
    read = value_in(save(tensors))
    assert read.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert type(read[name]) is type(tensor) and read[name].requires_grad == tensor.requires_grad
        assert read[name].dtype == tensor.dtype and read[name].stride() == tensor.stride()
        assert torch.equal(read[name], tensor), name
    assert read["part"].untyped_storage().data_ptr() == read["turned"].untyped_storage().data_ptr()


def test_state_dict_of_a_module_with_its_metadata(tmp_path: Path, assert_same: Callable[..., None]) -> None:
    state = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).state_dict()
    torch.save(state, tmp_path / "c.pth")
    read = read_pickle(tmp_path / "c.pth")
    assert_same(read, state)
    assert type(read) is OrderedDict and read._metadata == state._metadata


class EasyDict(dict):
    """As many repositories have: entries are attributes as well."""

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__()
        for name, value in entries.items():
            setattr(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        value = EasyDict(value) if isinstance(value, dict) else value
        super().__setattr__(name, value)
        super().__setitem__(name, value)


class Rows(list):
    pass


NAMESPACE = argparse.Namespace(lr=0.1, output=Path("/out"), size=(1, 2))
MADE = {
    "plain": (values := [None, True, 3, 2**80, 1.5, 1j, "x", b"x", bytearray(b"x"), (1,), {1: 2}, {1, 2}], values),
    "more plain": (values := [frozenset({1}), slice(1, 2), range(3), Counter("aab"), torch.Size([1])], values),
    "namespace": (NAMESPACE, argparse.Namespace(lr=0.1, output=PurePosixPath("/out"), size=(1, 2))),
    "path": (Path("a/b"), PurePosixPath("a/b")),
    "pure path": (PurePosixPath("a/b"), PurePosixPath("a/b")),
    "path of Windows": (PureWindowsPath(r"c:\a"), PureWindowsPath(r"c:\a")),
    "deque": (deque([1, 2]), [1, 2]),
    "deque of a length": (deque([1, 2], maxlen=3), [1, 2]),
    "list of a class": (Rows([1, [2]]), [1, [2]]),
    "defaultdict": (defaultdict(list, a=[1]), OrderedDict(a=[1])),
    "defaultdict of a class": (defaultdict(EasyDict, a=1), OrderedDict(a=1)),
    "date": (datetime.date(2020, 2, 1), datetime.date(2020, 2, 1)),
    "datetime": (datetime.datetime(2020, 2, 1, 3), datetime.datetime(2020, 2, 1, 3)),
    "datetime of a zone": (when := datetime.datetime(2020, 2, 1, tzinfo=datetime.timezone.utc), when),
    "timedelta": (datetime.timedelta(3), datetime.timedelta(3)),
    "config": (ConfigDict(a=dict(b=[1, dict(c=2)])), OrderedDict(a=OrderedDict(b=[1, OrderedDict(c=2)]))),
    "dict of a class": (EasyDict(dict(a=1, b=dict(c=2))), OrderedDict(a=1, b=OrderedDict(c=2))),
    "several": ([deque([1]), EasyDict(dict(a=deque()))], [[1], OrderedDict(a=[])]),
}


@pytest.mark.parametrize("known", [(), mmengines_types()], ids=["none known", "mmengine's known"])
@pytest.mark.parametrize("name", MADE)
def test_settings_are_plain_values(save: Callable[..., Path], name: str, known: list[Any]) -> None:
    written, expected = MADE[name]
    read = value_in(save(written), known=known)
    assert read == expected and type(read) is type(expected)


class Colour(enum.Enum):
    RED = "red"


class Point:
    __slots__ = ("weight", "x")

    def __init__(self) -> None:
        self.x, self.weight = 1, torch.ones(2)


class Settings:
    def __init__(self) -> None:
        self.lr, self.path = 0.1, Path("a")


class Outer:
    class Inner:
        def __init__(self) -> None:
            self.a = 1

    def method(self) -> None:
        pass


class Name(str):
    pass


class Empty(dict):
    pass


Pair = namedtuple("Pair", "a b")
BERLIN = datetime.datetime(2020, 2, 1, tzinfo=zoneinfo.ZoneInfo("Europe/Berlin"))
INERT = {
    "enum": (Colour.RED, f"{__name__}.Colour", ("red",)),
    "object with slots": (Point(), f"{__name__}.Point", ()),
    "object": (Settings(), f"{__name__}.Settings", ()),
    "object of an inner class": (Outer.Inner(), f"{__name__}.Outer.Inner", ()),
    "str of a class": (Name("x"), f"{__name__}.Name", ("x",)),
    "empty dict of a class": (Empty(), f"{__name__}.Empty", ()),
    "named tuple": (Pair(1, 2), f"{__name__}.Pair", (1, 2)),
    "error": (KeyError("x"), "exceptions.KeyError", ("x",)),
    "time": (datetime.time(3), "datetime.time", (b"\x03\0\0\0\0\0",)),
}


@pytest.mark.parametrize("name", INERT)
def test_what_is_unknown_is_kept_as_data(save: Callable[..., Path], name: str) -> None:
    written, type_name, arguments = INERT[name]
    read = value_in(save(written))
    assert isinstance(read, Inert) and (read.type_name, read.arguments) == (type_name, arguments)
    assert repr(read) == f"<{type_name}, not made>"


def test_state_of_objects_is_kept(save: Callable[..., Path]) -> None:
    point, settings, inner = value_in(save([Point(), Settings(), Outer.Inner()]))
    nothing, slots = point.state
    assert nothing is None and slots["x"] == 1 and torch.equal(slots["weight"], torch.ones(2))
    assert settings.state == dict(lr=0.1, path=PurePosixPath("a")) and inner.state == dict(a=1)


def test_object_in_two_places_is_one(save: Callable[..., Path]) -> None:
    settings = Settings()
    one, other = value_in(save([settings, settings]))
    assert one is other


def test_unknown_objects_may_be_keys(save: Callable[..., Path]) -> None:
    (key,) = value_in(save({Colour.RED: 1}))
    assert key.arguments == ("red",)


def test_datetime_of_an_unknown_zone_is_kept_as_data(save: Callable[..., Path]) -> None:
    read = value_in(save(BERLIN))
    assert isinstance(read, Inert) and read.type_name == "datetime.datetime"
    assert read.arguments[1].type_name == "zoneinfo.ZoneInfo._unpickle"
    assert read.arguments[1].arguments[0] == "Europe/Berlin"


def test_methods_and_functions_are_not_found(save: Callable[..., Path]) -> None:
    bound, function, builtin, inner = value_in(save([Outer().method, os.path.join, len, Outer.Inner]))
    assert bound.type_name == "builtins.getattr" and bound.arguments[0].type_name == f"{__name__}.Outer"
    assert [one.type_name for one in (function, builtin)] == ["posixpath.join", "builtins.len"]
    assert inner.type_name == f"{__name__}.Outer.Inner"
    assert all(issubclass(one, Inert) for one in (function, builtin, inner))


def test_whole_modules_are_data(tmp_path: Path) -> None:
    module = nn.Linear(2, 3)
    torch.save(module, tmp_path / "c.pth")
    read = read_pickle(tmp_path / "c.pth")
    assert read.type_name == "torch.nn.modules.linear.Linear"
    assert torch.equal(read.state["_parameters"]["weight"], module.weight)
    torch.save(module, tmp_path / "c.pth", _use_new_zipfile_serialization=False)
    with pytest.raises(ValueError, match=r"c\.pth' cannot be read"):
        read_pickle(tmp_path / "c.pth")


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int64, np.uint8, np.bool_])
def test_numpy_is_data_unless_it_is_known(save: Callable[..., Path], dtype: type) -> None:
    path = save([dtype(1), np.ones((2, 3), dtype), np.array(["a", "bc"]), np.dtype(dtype)])
    scalar, array, texts, kind = value_in(path)
    assert all(isinstance(one, Inert) for one in (scalar, array, texts, kind))
    assert scalar.type_name.endswith(".scalar") and array.type_name.endswith("._reconstruct")
    scalar, array, texts, kind = value_in(path, known=mmengines_types())
    assert scalar == 1 and type(scalar) is dtype
    np.testing.assert_array_equal(array, np.ones((2, 3), dtype), strict=True)
    assert texts.tolist() == ["a", "bc"] and kind == np.dtype(dtype)


def test_map_location(save: Callable[..., Path]) -> None:
    read = read_pickle(save([Settings(), EasyDict(dict(w=torch.ones(2)))]), map_location="meta")
    assert read["state_dict"]["w"].is_meta and read["value"][1]["w"].is_meta


@pytest.fixture
def types() -> Iterator[list[type]]:
    made = [type(f"Type{i}", (), {"__module__": __name__}) for i in range(201)]
    for one in made:
        setattr(sys.modules[__name__], one.__name__, one)
    yield made
    for one in made:
        delattr(sys.modules[__name__], one.__name__)


def test_many_unknown_types(save: Callable[..., Path], types: list[type]) -> None:
    read = value_in(save([one() for one in types[:150]]))
    assert [one.type_name for one in read] == [f"{__name__}.Type{i}" for i in range(150)]
    with pytest.raises(ValueError, match=r"c\.pth' cannot be read: it holds objects of more than 200 unknown types"):
        read_pickle(save([one() for one in types]))


# what is no checkpoint


@pytest.mark.parametrize(
    "content",
    {
        "empty": b"",
        "start of a zip": b"PK\x03\x04",
        "text": b"hello, world\n",
        "table": b"epoch,loss\n1,0.5\n",
        "page": b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        "JSON": b'{"state_dict": {}}\n',
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "start of a pickle": b"\x80\x02}q\x00",
        "pickle of another kind": pickle.dumps(dict(w=1), protocol=2),
        "zeros": bytes(1000),
        "all bytes": bytes(range(256)),
        **{f"random bytes {seed}": np.random.default_rng(seed).bytes(5000) for seed in range(5)},
    }.items(),
    ids=lambda item: item[0],
)
def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, content: tuple[str, bytes]) -> None:
    (tmp_path / "c.pth").write_bytes(content[1])
    with pytest.raises(ValueError, match=r"'.*/c\.pth' cannot be read: \S+"):
        read_pickle(tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"'.*/c\.pth' cannot be read: \S+"):
        read_pickle(str(tmp_path / "c.pth"), known=mmengines_types())


@pytest.mark.parametrize("value", [torch.ones(2500), [torch.ones(2500), Settings(), Path("a")]], ids=["plain", "odd"])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.9, 0.99])
def test_truncated_files_are_refused_by_name(save: Callable[..., Path], value: Any, share: float) -> None:
    path = save(value)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"c\.pth' cannot be read"):
        read_pickle(path)


@pytest.mark.filterwarnings("ignore")  # torch.jit is deprecated
def test_programs_folders_and_missing_files_are_refused_by_name(tmp_path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth' cannot be read"):
        read_pickle(tmp_path / "c.pth")
    for path in (tmp_path, tmp_path / "none.pth"):
        with pytest.raises(ValueError, match=f"'{path}' cannot be read"):
            read_pickle(path)


# what torch may make is one set for the whole process


@pytest.mark.parametrize("error", [None, RuntimeError, KeyboardInterrupt])
def test_what_torch_may_make_is_as_before(
    save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, error: type[BaseException] | None
) -> None:
    path = save([Settings(), Path("a")])
    with torch.serialization.safe_globals([Settings, (Path, "pathlib.PosixPath")]):
        before = set(torch.serialization.get_safe_globals())
        if error is None:
            value_in(path, known=mmengines_types())
        else:

            def fail(*args: Any, **kwargs: Any) -> None:
                assert set(torch.serialization.get_safe_globals()) != before
                raise error

            with monkeypatch.context() as patch, pytest.raises((ValueError, KeyboardInterrupt)):
                patch.setattr(torch, "load", fail)
                read_pickle(path)
        assert set(torch.serialization.get_safe_globals()) == before


def test_threads_may_read_at_once(tmp_path: Path) -> None:
    for i, value in enumerate((Settings(), Colour.RED, EasyDict(dict(a=1)))):
        torch.save(dict(state_dict=dict(w=W), value=value), tmp_path / f"{i}.pth")
    errors = []

    def read(path: Path) -> None:
        try:
            for _ in range(20):
                value_in(path)
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=read, args=(tmp_path / f"{i % 3}.pth",)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not errors
