"""What runs begin with, read by this package's reader; what they save, readable by all; and nothing in it is run."""

import argparse
import datetime
import enum
import json
import os
import tempfile
import threading
from collections import OrderedDict, defaultdict, deque, namedtuple
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from typing import Any

import mmengine
import numpy as np
import pytest
import torch
from helpers.data_sets import Noise, write_photos
from helpers.nets import TinyClassifier
from helpers.small_run import CONFIG, OPTIONS, TEST, TRAIN, miou
from hypothesis import given, settings
from hypothesis import strategies as st
from mmengine.config import ConfigDict
from mmengine.hooks import Hook
from mmengine.model import BaseModel, BaseModule, ModuleList
from mmengine.runner import FlexibleRunner, Runner
from mmengine.utils.dl_utils import load_url
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apla_mm.delta.pickles import Inert
from apla_mm.internals import SCHEME, load_path
from apla_mm.loading.checkpoint_reader import load_from_apla_mm, read_checkpoint
from apla_mm.loading.checkpoint_reader_hook import VARIABLE, CheckpointReaderHook, add_checkpoint_reader
from apla_mm.loading.plain_values import plain

pytestmark = pytest.mark.slow

HOOKS = [dict(type="CheckpointReaderHook")]


@pytest.fixture(autouse=True)
def _as_stock_tools_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "0")  # put back afterwards, also where a run fails


class EasyDict(dict):
    """As many repositories have: entries are attributes as well."""

    def __init__(self, entries: dict[str, Any]) -> None:
        super().__init__(entries)
        self.__dict__ = self


class Colour(enum.Enum):
    RED = 1


class Settings:
    def __init__(self) -> None:
        self.rate = 0.1


class Tags(set):
    pass


Point = namedtuple("Point", "x y")

# value -> what is read; what is None is left out
ODD: dict[str, tuple[Any, Any]] = {
    "namespace": (argparse.Namespace(a=1, out=Path("/o")), argparse.Namespace(a=1, out=PurePosixPath("/o"))),
    "path": (Path("a/b"), PurePosixPath("a/b")),
    "deque": (deque([1]), [1]),
    "defaultdict": (defaultdict(list, a=[1]), dict(a=[1])),
    "date": (datetime.datetime(2024, 1, 2, 3), datetime.datetime(2024, 1, 2, 3)),
    "config": (ConfigDict(a=dict(b=[dict(c=1)])), dict(a=dict(b=[dict(c=1)]))),
    "EasyDict": (EasyDict(dict(a=1)), dict(a=1)),
    "array": (np.float64(0.5), np.float64(0.5)),
    "enumeration": (Colour.RED, None),
    "object": (Settings(), None),
}


class Evil:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return open, (str(self.marker), "w")


class Trained(Exception):
    """A step was made, which a refusal should have come before."""


class StopsAtFirstStep(Hook):
    def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
        raise Trained

    before_test_iter = before_train_iter


def weights(value: float = 0.25) -> dict[str, Tensor]:
    return {name: torch.full_like(tensor, value) for name, tensor in TinyClassifier().state_dict().items()}


def assert_loaded(model: nn.Module, value: float = 0.25) -> None:
    assert all((tensor == value).all() for tensor in model.state_dict().values())


@pytest.fixture(params=[True, False], ids=["zip", "legacy"])
def save(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a checkpoint in either of torch's formats."""

    def write(content: Any) -> Path:
        torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=request.param)
        return tmp_path / "c.pth"

    return write


def loading(make_runner: Callable[..., Runner], path: Any, **more: Any) -> Runner:
    """A runner that is about to load, and stops before its first step."""
    runner = make_runner(TinyClassifier(), load_from=str(path), custom_hooks=[*HOOKS, StopsAtFirstStep()], **more)
    return runner


def train(runner: Runner) -> None:
    with pytest.raises(Trained):
        runner.train()


# what is read


@pytest.mark.parametrize("kind", ODD)
def test_load_from_reads_harmless_content(
    make_runner: Callable[..., Runner],
    save: Callable[[Any], Path],
    read_log: Callable[[], str],
    kind: str,
) -> None:
    value, read = ODD[kind]
    path = save(dict(state_dict=weights(), meta=dict(odd=value, more=[value]), args=value))
    seen: list[Any] = []

    class Looks(Hook):
        def after_load_checkpoint(self, runner: Runner, checkpoint: Any) -> None:
            seen.append(checkpoint)

    runner = loading(make_runner, path)
    runner.register_hook(Looks())
    train(runner)
    assert_loaded(runner.model)
    (content,) = seen
    assert content["meta"] == (dict(odd=read, more=[read]) if read is not None else dict(more=[None]))
    assert content.get("args") == read
    told = "left out 3 entries of types that are not known: meta.odd (" in read_log()
    assert told == (read is None)


def test_a_run_is_resumed_from_odd_content(
    make_runner: Callable[..., Runner], tmp_path: Path, read_log: Callable[[], str]
) -> None:
    model = TinyClassifier()
    first = make_runner(model, custom_hooks=HOOKS)
    first.train()
    path = Path(first.work_dir, "iter_2.pth")
    checkpoint = read_checkpoint(path)
    checkpoint["meta"].update({kind: value for kind, (value, _) in ODD.items()})
    checkpoint["optimizer"]["param_groups"][0]["note"] = Settings()
    torch.save(checkpoint, path)
    named = make_runner(TinyClassifier(), max_iters=4, resume=True, load_from=str(path), custom_hooks=HOOKS)
    latest = make_runner(TinyClassifier(), max_iters=4, resume=True, custom_hooks=HOOKS)
    for runner in (latest, named):
        runner.train()
        assert runner.iter == 4
    assert "optimizer.param_groups.0.note (" in read_log()
    assert f"resuming from the latest checkpoint '{path}'" in read_log()
    assert (Path(first.work_dir) / "iter_4.pth").exists()


def test_a_resume_without_a_checkpoint_begins_anew(make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(TinyClassifier(), resume=True, custom_hooks=HOOKS)
    runner.train()
    assert runner.iter == 2 and load_path(runner) is None


def test_the_path_is_plain_for_all_who_ask(make_runner: Callable[..., Runner], save: Callable[[Any], Path]) -> None:
    path = save(dict(state_dict=weights()))
    runner = loading(make_runner, path, cfg=dict(load_from=str(path)))
    hook = next(hook for hook in runner.hooks if isinstance(hook, CheckpointReaderHook))
    for _ in range(2):
        hook.before_run(runner)
        assert load_path(runner) == str(path) and runner._load_from == f"{SCHEME}{path}"
    assert runner.cfg.load_from == str(path)
    hook.before_train(runner)


@pytest.mark.parametrize("path", ["http://127.0.0.1:1/c.pth", "open-mmlab://x", "torchvision://x", "s3://b/c.pth"])
def test_what_is_elsewhere_is_left_to_mmengine(make_runner: Callable[..., Runner], path: str) -> None:
    runner = loading(make_runner, path)
    for hook in runner.hooks:
        hook.before_run(runner)
    assert runner._load_from == path
    CheckpointReaderHook.before_train(next(h for h in runner.hooks if isinstance(h, CheckpointReaderHook)), runner)


def test_safetensors_by_their_content(make_runner: Callable[..., Runner], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    for name in ("w.safetensors", "w.bin"):
        save_file(weights(), tmp_path / name)
        runner = loading(make_runner, tmp_path / name)
        train(runner)
        assert_loaded(runner.model)


def test_flexible_runner_is_prepared_when_it_is_made(tmp_path: Path) -> None:
    torch.save(dict(state_dict=weights(), meta=dict(out=Path("o"), kind=Colour.RED)), tmp_path / "c.pth")
    runner = FlexibleRunner(
        TinyClassifier(),
        work_dir=str(tmp_path / "work"),
        train_dataloader=DataLoader(Noise(), batch_size=2),
        train_cfg=dict(by_epoch=False, max_iters=1),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.0)),
        load_from=str(tmp_path / "c.pth"),
        custom_hooks=[StopsAtFirstStep()],
    )
    add_checkpoint_reader(runner)
    train(runner)
    assert_loaded(runner.model)


# what is refused


FAULTS: dict[str, tuple[Any, str]] = {
    "deleted": (None, r"no such file .*name one that is"),
    "web page": (b"\n<!DOCTYPE html>\n<html></html>", "seems to be a web page, .*download that"),
    "git-lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS.*git lfs pull"),
    "empty": (b"", "it is empty: copy or download it again"),
    "zeros": (bytes(5000), "nothing but zeros.*copy or download it again"),
    "text": (b"lr = 0.1\nmodel = dict()\n", "seems to be a text, which begins with 'lr = 0.1'"),
    "cut": (lambda whole: whole[:-200], "copy or download it again"),
    "cut at the start": (lambda whole: whole[:20], "copy or download it again"),
    "list": ([torch.ones(1)], "holds a list, not a checkpoint"),
    "whole object": (Settings(), r"holds a whole object of type \S*Settings, .*torch.save its state_dict"),
    "whole model in it": (dict(state_dict=Settings(), a=1), r"holds a whole object in state_dict \(\S*Settings\)"),
    "nothing": ({}, "holds no state dict"),
}


@pytest.mark.parametrize("kind", FAULTS)
@pytest.mark.parametrize("resume", [False, True], ids=["load_from", "resume"])
def test_another_file_is_an_error_that_says_what_it_is(
    make_runner: Callable[..., Runner], save: Callable[[Any], Path], kind: str, resume: bool
) -> None:
    content, message = FAULTS[kind]
    path = save(dict(state_dict=weights()))
    if content is None:
        path.unlink()
    elif isinstance(content, bytes):
        path.write_bytes(content)
    elif callable(content):
        path.write_bytes(content(path.read_bytes()))
    else:
        save(content)
    runner = loading(make_runner, path, resume=resume)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"checkpoint '{path}'.*{message}|'{path}'.*{message}"):
        runner.train()


def test_the_latest_checkpoint_is_gone(make_runner: Callable[..., Runner]) -> None:
    first = make_runner(TinyClassifier(), max_iters=2, custom_hooks=HOOKS)
    first.train()
    path = Path(first.work_dir, "iter_2.pth")
    path.rename(path.with_name("iter_1.pth"))
    runner = make_runner(TinyClassifier(), resume=True, custom_hooks=[*HOOKS, StopsAtFirstStep()])
    with pytest.raises(FileNotFoundError, match=r"iter_2\.pth': no such .*'last_checkpoint'.*has 'iter_1\.pth': .*--r"):
        runner.train()


# nothing is run


@pytest.mark.parametrize("place", ["meta", "args", "state_dict"])
def test_what_runs_code_is_not_run(
    make_runner: Callable[..., Runner], save: Callable[[Any], Path], tmp_path: Path, place: str
) -> None:
    content: dict[str, Any] = dict(state_dict=weights(), meta={})
    content.setdefault(place, {})
    content[place] = {**content[place], "evil": Evil(tmp_path / "marker")}
    runner = loading(make_runner, save(content))
    train(runner)
    assert_loaded(runner.model)
    assert not (tmp_path / "marker").exists()


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[dict[str, str], Path]]:
    """Names by which mmengine loads a pickle that runs code, and what that would write.

    It comes from a server here, or, where mmengine's list has a fixed address, from torch's cache of downloads.
    """
    cache, home, marker = tmp_path / "torch", tmp_path / "mmengine", tmp_path / "marker"
    monkeypatch.setenv("TORCH_HOME", str(cache))
    monkeypatch.setenv("MMENGINE_HOME", str(home))
    (cache / "hub/checkpoints").mkdir(parents=True)
    for folder in (home, tmp_path / "served"):
        folder.mkdir()
    evil = dict(state_dict=dict(w=torch.ones(1)), evil=Evil(marker))
    torch.save(evil, tmp_path / "served/evil.pth")
    hub = Path(mmengine.__file__).parent / "hub"
    names = {}
    for scheme, table in {"torchvision": "torchvision_0.12", "modelzoo": "torchvision_0.12", "mmcls": "mmcls"}.items():
        name, url = next(iter(json.loads((hub / f"{table}.json").read_text()).items()))
        torch.save(evil, cache / "hub/checkpoints" / url.rpartition("/")[2])
        names[scheme] = f"{scheme}://{name}"
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "served"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/evil.pth"
        torch.save(evil, home / "local.pth")
        (home / "open_mmlab.json").write_text(json.dumps(dict(evil=url, local="local.pth")))
        names["http"], names["open-mmlab"], names["openmmlab"] = url, "open-mmlab://evil", "openmmlab://evil"
        names["open-mmlab, local"] = "open-mmlab://local"
        yield names, marker
        server.shutdown()
        thread.join()


def test_no_scheme_of_mmengines_runs_code(
    make_runner: Callable[..., Runner], elsewhere: tuple[dict[str, str], Path]
) -> None:
    names, marker = elsewhere
    assert len(names) == 7
    for scheme, name in names.items():
        with pytest.raises(Exception, match=r"(?i)weights.only"):
            loading(make_runner, name).train()
        assert os.environ[VARIABLE] == "1" and not marker.exists(), scheme
        os.environ[VARIABLE] = "0"
    # without the hook each does, but for the original mmengine beside a torch that refuses by itself
    if not hasattr(mmengine.runner.checkpoint, "get_torch_safe_globals"):
        return
    for scheme, name in names.items():
        runner = make_runner(TinyClassifier(), load_from=name, custom_hooks=[StopsAtFirstStep()])
        with pytest.raises(Trained):
            runner.train()
        assert marker.exists(), scheme
        marker.unlink()
    assert load_url(names["http"]) and marker.exists()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, Any], dict[str, str]]]:
    """Writes a file where a server here has it; gives the names by which mmengine loads it from there."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("MMENGINE_HOME", str(tmp_path / "mmengine"))
    folder, cache = tmp_path / "served", tmp_path / "torch/hub/checkpoints"
    for one in (folder, cache, tmp_path / "mmengine"):
        one.mkdir(parents=True)
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()

        def write(name: str, content: Any) -> dict[str, str]:
            torch.save(content, folder / f"{name}.pth")
            url = f"http://127.0.0.1:{server.server_port}/{name}.pth"
            (tmp_path / "mmengine/open_mmlab.json").write_text(json.dumps({name: url}))
            # this list has fixed addresses, whose downloads torch's cache would have
            table = json.loads((Path(mmengine.__file__).parent / "hub/mmcls.json").read_text())
            model, address = next(iter(table.items()))
            torch.save(content, cache / address.rpartition("/")[2])
            return {
                "http": url,
                "http with a query": f"{url}?download=1",
                "open-mmlab": f"open-mmlab://{name}",
                "mmcls": f"mmcls://{model}",
            }

        yield write
        server.shutdown()
        thread.join()


ELSEWHERE = ("http", "http with a query", "open-mmlab", "mmcls")


@pytest.mark.parametrize("scheme", ELSEWHERE)
def test_weights_from_elsewhere_are_loaded(
    make_runner: Callable[..., Runner], served: Callable[[str, Any], dict[str, str]], scheme: str
) -> None:
    name = served("fine", dict(state_dict=weights(), meta=dict(iter=3, score=np.float64(0.5))))[scheme]
    runner = loading(make_runner, name)
    train(runner)
    if scheme != "mmcls":  # of which mmengine takes the keys of a classifier's backbone alone
        assert_loaded(runner.model)


def test_a_run_is_resumed_from_a_server(
    make_runner: Callable[..., Runner], served: Callable[[str, Any], dict[str, str]], tmp_path: Path
) -> None:
    first = make_runner(TinyClassifier(), custom_hooks=HOOKS)
    first.train()
    content = read_checkpoint(Path(first.work_dir, "iter_2.pth"))
    url = served("iter_2", content)["http"]
    runner = make_runner(TinyClassifier(), max_iters=3, resume=True, load_from=url, custom_hooks=HOOKS)
    runner.train()
    assert runner.iter == 3
    content["meta"]["evil"] = Evil(tmp_path / "marker")
    url = served("evil_2", content)["http"]
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        make_runner(TinyClassifier(), max_iters=4, resume=True, load_from=url, custom_hooks=HOOKS).train()
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("scheme", ELSEWHERE)
@pytest.mark.parametrize("evil", [False, True], ids=["fine", "evil"])
def test_init_cfg_from_elsewhere(
    make_runner: Callable[..., Runner],
    served: Callable[[str, Any], dict[str, str]],
    tmp_path: Path,
    scheme: str,
    evil: bool,
) -> None:
    keep = "backbone." if scheme == "mmcls" else ""
    state = {f"{keep}linear.weight": torch.full((3, 3), 0.5), f"{keep}linear.bias": torch.full((3,), 0.5)}
    more = dict(evil=Evil(tmp_path / "marker")) if evil else {}
    name = served("part", dict(state_dict=state, **more))[scheme]
    model = Model(dict(type="Pretrained", checkpoint=name))
    runner = make_runner(model, custom_hooks=[*HOOKS, StopsAtFirstStep()])
    with pytest.raises(Exception, match=r"(?i)weights.only") if evil else pytest.raises(Trained):
        runner.train()
    assert not (tmp_path / "marker").exists()
    assert evil or all((tensor == 0.5).all() for tensor in model.state_dict().values())


def test_the_environment_is_as_before_once_all_is_loaded(
    make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Looks(Hook):
        priority = "LOWEST"
        seen: list[str | None] = []

        def before_run(self, runner: Runner) -> None:
            self.seen.append(os.environ.get(VARIABLE))

        def before_train_iter(self, *args: Any, **kwargs: Any) -> None:
            self.seen.append(os.environ.get(VARIABLE))

    for before in (None, "0", "1"):
        monkeypatch.delenv(VARIABLE, raising=False)
        if before is not None:
            monkeypatch.setenv(VARIABLE, before)
        Looks.seen.clear()
        make_runner(TinyClassifier(), max_iters=1, custom_hooks=[*HOOKS, Looks()]).train()
        assert Looks.seen == ["1", before] and os.environ.get(VARIABLE) == before


# what parts of a model name


class Part(BaseModule):
    def __init__(self, init_cfg: Any) -> None:
        super().__init__(init_cfg)
        self.linear = nn.Linear(3, 3)


class Model(BaseModel):
    def __init__(self, *settings: Any) -> None:
        super().__init__()
        self.parts = ModuleList(Part(one) for one in settings)

    def forward(self, inputs: Tensor, labels: Any = None, mode: str = "tensor") -> Any:
        y = inputs.mean((-2, -1))
        for part in self.parts:
            y = part.linear(y)
        return dict(loss=y.square().mean()) if mode == "loss" else y


@pytest.fixture
def init_file(tmp_path: Path) -> Path:
    state = {"linear.weight": torch.full((3, 3), 0.5), "linear.bias": torch.full((3,), 0.5)}
    content = dict(state_dict=state, args=argparse.Namespace(out=Path("o")), kind=Colour.RED, more=Settings())
    torch.save(content, tmp_path / "part.pth")
    return tmp_path / "part.pth"


def test_init_cfg_reads_harmless_content(
    make_runner: Callable[..., Runner], init_file: Path, read_log: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    one = ConfigDict(type="Pretrained", checkpoint=str(init_file))
    xavier = dict(type="Xavier", layer="Conv2d")
    model = Model(one, [xavier, dict(one)])
    hooks = [*HOOKS, dict(type="WeightsCheckHook"), StopsAtFirstStep()]
    train(make_runner(model, custom_hooks=hooks))
    assert all((tensor == 0.5).all() for tensor in model.state_dict().values())
    assert one.checkpoint == str(init_file)
    assert "part.pth': left out 2 entries of types that are not known: kind (" in read_log()
    assert "cannot be read again" not in read_log()
    # mmengine alone does not read it
    with pytest.raises(Exception, match="(?i)weights.only"):
        make_runner(Model(one), custom_hooks=[StopsAtFirstStep()]).train()


@pytest.mark.parametrize("content", [b"<html>", b"", None], ids=str)
def test_init_cfg_of_another_file_is_named(
    make_runner: Callable[..., Runner], init_file: Path, content: bytes | None
) -> None:
    model = Model(dict(type="Pretrained", checkpoint=str(init_file)))
    if content is None:
        init_file.unlink()
    else:
        init_file.write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=rf"'{init_file}'.*(web page|empty|no such file)"):
        make_runner(model, custom_hooks=[*HOOKS, StopsAtFirstStep()]).train()


# what is saved


META = ConfigDict(classes=("a", "b"), source=dict(year=2024, by=[dict(name="x")]))


def test_checkpoints_hold_plain_values(
    make_runner: Callable[..., Runner], read_log: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "1")
    metainfo = dict(META, path=Path("a"), colour=Colour.RED, at=Point(1, 2), ids=np.arange(3))

    def make(hooks: Any, **more: Any) -> Runner:
        loader = DataLoader(Noise(**metainfo), batch_size=2)
        return make_runner(TinyClassifier(), train_dataloader=loader, custom_hooks=hooks, **more)

    runner = make(HOOKS)
    runner.train()
    path = Path(runner.work_dir, "iter_2.pth")
    saved = load_from_apla_mm(path)
    for meta in (saved["meta"]["dataset_meta"], saved["message_hub"]["runtime_info"]["dataset_meta"]):
        assert type(meta["source"]) is type(meta["source"]["by"][0]) is dict and type(meta["at"]) is tuple
        assert meta["source"] == META["source"] and meta["path"] == "a" and meta["colour"] == 1
    assert type(runner.train_dataloader.dataset.metainfo["source"]) is ConfigDict
    make([], max_iters=3, resume=True).train()  # by mmengine alone, which takes no other values then
    assert "metainfo from the resumed checkpoint is different" in read_log()  # of its pickle, and so of any ConfigDict


@pytest.mark.parametrize("same", [True, False])
def test_metainfo_is_compared_by_its_values(
    make_runner: Callable[..., Runner], read_log: Callable[[], str], same: bool
) -> None:
    for max_iters, meta in ((2, META), (3, META if same else ConfigDict(META, classes=("a", "c")))):
        loader = DataLoader(Noise(**meta), batch_size=2)
        runner = make_runner(TinyClassifier(), max_iters, train_dataloader=loader, custom_hooks=HOOKS, resume=True)
        runner.train()
    assert runner.iter == 3
    assert ("metainfo from the resumed checkpoint is different" in read_log()) != same


# generated content


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5), st.binary(max_size=5),
    st.sampled_from([value for value, _ in ODD.values()]),
    st.sampled_from([Tags("ab"), frozenset({1}), OrderedDict(a=1), np.arange(3), torch.ones(2)]),
)  # fmt: skip
VALUES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.lists(inner, max_size=3).map(deque),
        st.dictionaries(st.text(max_size=4), inner, max_size=3),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(ConfigDict),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(EasyDict),
        st.dictionaries(st.sampled_from("abcd"), inner, max_size=3).map(lambda d: argparse.Namespace(**d)),
    ),
    max_leaves=12,
)


def parts_of(value: Any) -> Iterator[Any]:
    yield value
    if isinstance(value, argparse.Namespace):
        value = vars(value)
    if isinstance(value, dict):
        for entry in [*value, *value.values()]:
            yield from parts_of(entry)
    elif isinstance(value, list | tuple | set | frozenset):
        for entry in value:
            yield from parts_of(entry)


@settings(max_examples=20, deadline=None, derandomize=True)
@given(value=VALUES, zipped=st.booleans(), evil=st.booleans())
def test_generated_content_is_read_and_not_run(value: Any, zipped: bool, evil: bool) -> None:
    state = {f"w{i}": torch.randn(3, 2, dtype=dtype) for i, dtype in enumerate((torch.float32, torch.bfloat16))}
    with tempfile.TemporaryDirectory() as folder:
        path, marker = Path(folder, "c.pth"), Path(folder, "marker")
        more = dict(evil=[Evil(marker)]) if evil else {}
        content = dict(state_dict=state, meta=dict(value=value, iter=3, **more), optimizer=dict(state={0: [value]}))
        torch.save(content, path, _use_new_zipfile_serialization=zipped)
        read = load_from_apla_mm(f"{SCHEME}{path}", "cpu")
        assert not marker.exists()
    assert read["meta"]["iter"] == 3 and read["state_dict"].keys() == state.keys()
    for name, tensor in state.items():
        assert read["state_dict"][name].dtype == tensor.dtype and torch.equal(read["state_dict"][name], tensor)
    assert not any(isinstance(part, Inert) for part in parts_of(read))


@settings(max_examples=20, deadline=None, derandomize=True)
@given(value=VALUES)
def test_generated_values_are_plain_once_they_are_saved(value: Any) -> None:
    made = plain(value)
    allowed = (Settings, datetime.datetime, np.ndarray, np.generic, Tensor)
    for part in parts_of(made):
        types = (type(None), bool, int, float, str, bytes, list, tuple, set, frozenset, dict, OrderedDict)
        assert type(part) in types or isinstance(part, allowed), part


# the whole way


def test_a_dict_in_metainfo_trains_resumes_and_tests(tmp_path: Path) -> None:
    from helpers.processes import run

    data = write_photos(tmp_path / "data")
    (tmp_path / "c.py").write_text(
        f"_base_ = {str(CONFIG)!r}\n"
        "meta = dict(classes=('dark', 'bright'), source=dict(year=2024))\n"
        + "".join(f"{split}_dataloader = dict(dataset=dict(metainfo=meta))\n" for split in ("train", "val", "test"))
        + "del meta\n"
    )
    options = [*(one for one in OPTIONS if not one.startswith("classes=")), f"data_root={data}"]

    def tool(path: Path, *arguments: object, more: tuple[str, ...] = (), **how: Any) -> str:
        return run(path, *arguments, "--cfg-options", *options, *more, **how).output

    config, work = tmp_path / "c.py", tmp_path / "work"
    trained = tool(TRAIN, config, "--work-dir", work)
    checkpoint = work / "iter_4.pth"
    tested = tool(TEST, config, checkpoint, "--work-dir", tmp_path / "tested")
    assert miou(tested, 4) == miou(trained, 4)
    # as mmengine alone has written it
    content = read_checkpoint(checkpoint)
    assert content["meta"]["dataset_meta"]["source"] == dict(year=2024)
    content["meta"]["dataset_meta"]["source"] = ConfigDict(year=2024)
    content["meta"]["out"] = Path("somewhere")
    torch.save(content, checkpoint)
    tested = tool(TEST, config, checkpoint, "--work-dir", tmp_path / "tested")
    assert miou(tested, 4) == miou(trained, 4)
    resumed = tool(TRAIN, config, "--work-dir", work, "--resume", more=("train_cfg.max_iters=6",))
    assert "iter: 4" in resumed and "metainfo from the resumed checkpoint is different" not in resumed
    checkpoint.write_bytes(b"<html></html>")
    failed = tool(TEST, config, checkpoint, "--work-dir", tmp_path / "tested", returncode=1)
    assert f"checkpoint '{checkpoint}' cannot be read: it seems to be a web page" in failed
    assert "Iter(test)" not in failed
