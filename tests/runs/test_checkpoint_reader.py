import json
import os
import pickle
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.error import HTTPError

import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer, history_buffer
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint, save_checkpoint
from safetensors.torch import load_file, save_file
from torch import nn

from apla_mm.delta import DeltaError, load_delta, save_delta
from apla_mm.delta.base_file import save_base
from apla_mm.delta.file import content_digest
from apla_mm.runs.checkpoint_reader import read_checkpoint, read_pickle


def assert_same(a: Any, b: Any, path: str = "checkpoint") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, path)
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            assert_same(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{path}[{i}]")
    elif isinstance(a, HistoryBuffer):
        assert_same((a.data, a.max_length), (b.data, b.max_length), path)
    else:
        assert a == b, path


@pytest.fixture(autouse=True)
def _full_unpickling_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools forbid it for their process, and tests that run them in this one leave that behind."""
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)


@pytest.fixture
def trained(tiny_classifier: nn.Module, make_runner: Callable[..., Runner]) -> Runner:
    runner = make_runner(tiny_classifier, max_iters=3)
    for i, dtype in enumerate((np.float64, np.float32, np.int64, np.uint8)):
        runner.message_hub.update_scalar(f"train/{dtype.__name__}", dtype(i + 1))
    runner.train()
    return runner


def checkpoint_of(runner: Runner) -> Path:
    return Path(runner.work_dir, "iter_3.pth")


def test_checkpoint_of_a_runner_reads_as_a_full_unpickling_does(trained: Runner) -> None:
    checkpoint = read_checkpoint(str(checkpoint_of(trained)))
    # the independent reference; this test wrote the file itself
    assert_same(checkpoint, torch.load(checkpoint_of(trained), weights_only=False))
    assert_same(checkpoint["optimizer"], trained.optim_wrapper.state_dict())
    assert_same(dict(checkpoint["state_dict"]), dict(trained.model.state_dict()))
    assert checkpoint["optimizer"]["state"] and checkpoint["meta"]["iter"] == 3


def test_history_buffers_still_compute_after_reading(trained: Runner) -> None:
    scalars = read_checkpoint(str(checkpoint_of(trained)))["message_hub"]["log_scalars"]
    loss, live = scalars["train/loss"], trained.message_hub.log_scalars["train/loss"]
    assert isinstance(loss, HistoryBuffer) and len(loss.data[0]) == 3
    for statistic in ("min", "max", "mean", "current"):
        assert getattr(loss, statistic)() == loss.statistics(statistic) == getattr(live, statistic)()


@pytest.mark.parametrize(
    "dtype",
    [np.float16, np.float32, np.float64, np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint64, np.bool_],
)
def test_numpy_values_written_by_save_checkpoint_are_read(tmp_path: Path, dtype: type) -> None:
    history = HistoryBuffer([dtype(1), dtype(0)], [1, 1])
    written = dict(scalar=dtype(1), array=np.ones((2, 3), dtype), history=history, more=[1, 2.5, "three", None, True])
    save_checkpoint(written, str(tmp_path / "c.pth"))
    assert_same(read_checkpoint(str(tmp_path / "c.pth")), written)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_checkpoints_written_beside_either_numpy_are_read(tmp_path: Path, core: str) -> None:
    here, there = b"numpy._core.multiarray", f"numpy.{core}.multiarray".encode()
    content = pickle.dumps(dict(scalar=np.float64(0.25), array=np.arange(3.0)), protocol=2)
    assert content.count(here) == 2
    magic = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    parts = [*(pickle.dumps(part, protocol=2) for part in magic), content.replace(here, there), pickle.dumps([], 2)]
    (tmp_path / "c.pth").write_bytes(b"".join(parts))
    assert_same(read_checkpoint(str(tmp_path / "c.pth")), dict(scalar=np.float64(0.25), array=np.arange(3.0)))


def test_map_location_moves_the_tensors(tmp_path: Path) -> None:
    save_checkpoint(dict(weight=torch.ones(2)), str(tmp_path / "c.pth"))
    assert read_checkpoint(str(tmp_path / "c.pth"), "meta")["weight"].is_meta


class RunsACommand:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"echo > '{self.marker}'",)


class OpensAFile(RunsACommand):
    def __reduce__(self) -> tuple:
        return open, (str(self.marker), "w")


class ReachesForGlobals(RunsACommand):
    """What pickle allows with a free ``getattr``: it writes into the globals of mmengine's module."""

    def __reduce__(self) -> tuple:
        return getattr, (HistoryBuffer.__init__, "__globals__"), None, None, iter([("poisoned", True)])


class NamesAnotherAttribute(RunsACommand):
    def __reduce__(self) -> tuple:
        return getattr, (HistoryBuffer, "register_statistics")


class TakesMeanOfAnArray(RunsACommand):
    """The name of a method that is allowed, of an owner that is not."""

    def __reduce__(self) -> tuple:
        return getattr, (np.ndarray, "mean")


@pytest.fixture
def no_side_effect(tmp_path: Path) -> Any:
    yield tmp_path / "marker"
    poisoned = vars(history_buffer).pop("poisoned", False)
    assert not poisoned and not (tmp_path / "marker").exists()


HARMFUL = [RunsACommand, OpensAFile, ReachesForGlobals, NamesAnotherAttribute, TakesMeanOfAnArray]


@pytest.mark.parametrize("harmful", HARMFUL)
@pytest.mark.parametrize("zipped", [True, False])
def test_pickle_with_other_objects_is_refused_and_does_nothing(
    tmp_path: Path, no_side_effect: Path, harmful: type[RunsACommand], zipped: bool
) -> None:
    content = dict(state_dict=dict(w=torch.ones(2)), extra=harmful(no_side_effect))
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"c\.pth' was not read, being damaged or holding more than tensors"):
        read_checkpoint(str(tmp_path / "c.pth"))


@pytest.mark.parametrize("harmful", HARMFUL)
def test_mmengine_reads_no_harmful_file_either(tmp_path: Path, no_side_effect: Path, harmful: type) -> None:
    torch.save(dict(state_dict={}, extra=harmful(no_side_effect)), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"c\.pth' was not read"):
        load_checkpoint(nn.Linear(2, 2), str(tmp_path / "c.pth"))


def test_mmengine_loads_weights_through_this_reader(tmp_path: Path, trained: Runner) -> None:
    assert CheckpointLoader._get_checkpoint_loader(str(tmp_path / "c.pth")) is read_checkpoint
    model = type(trained.model)(apla=dict(r=8))
    load_checkpoint(model, str(checkpoint_of(trained)), strict=True)
    assert_same(dict(model.state_dict()), dict(trained.model.state_dict()))


def test_runner_resumes_through_this_reader(trained: Runner, make_runner: Callable[..., Runner]) -> None:
    model = type(trained.model)(apla=dict(r=8))
    runner = make_runner(model, max_iters=3, resume=True)
    runner.train()  # nothing is left to do
    assert runner.iter == 3
    assert_same(dict(model.state_dict()), dict(trained.model.state_dict()))
    assert_same(runner.optim_wrapper.state_dict(), trained.optim_wrapper.state_dict())
    assert_same(runner.message_hub.log_scalars["train/loss"], trained.message_hub.log_scalars["train/loss"])


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def website(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Serves tmp_path; torch's cache is elsewhere."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "cache"))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=tmp_path)) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_runner_loads_what_mmengine_wrote_from_the_web(
    trained: Runner, make_runner: Callable[..., Runner], website: str
) -> None:
    url = f"{website}/{checkpoint_of(trained).relative_to(checkpoint_of(trained).parents[1])}"
    assert_same(CheckpointLoader.load_checkpoint(url), read_checkpoint(checkpoint_of(trained)))
    checkpoint_of(trained).unlink()  # from here on it comes from the cache
    runner = make_runner(type(trained.model)(apla=dict(r=8)), load_from=url)
    runner.load_or_resume()
    assert_same(dict(runner.model.state_dict()), dict(trained.model.state_dict()))


@pytest.mark.parametrize("harmful", HARMFUL)
def test_harmful_file_from_the_web_is_refused(
    tmp_path: Path, no_side_effect: Path, website: str, harmful: type[RunsACommand]
) -> None:
    torch.save(dict(state_dict={}, extra=harmful(no_side_effect)), tmp_path / "c.pth")
    with pytest.raises(ValueError, match=r"cache/checkpoints/c\.pth' was not read"):
        load_checkpoint(nn.Linear(2, 2), f"{website}/c.pth")


def test_file_missing_on_the_web_is_not_called_damaged(website: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        load_checkpoint(nn.Linear(2, 2), f"{website}/c.pth")


@pytest.fixture
def scaling_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets mmengine scale losses without a GPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))


@pytest.mark.usefixtures("scaling_on_cpu")
def test_runner_resumes_weights_averages_and_loss_scale(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner]
) -> None:
    def make(**settings: Any) -> tuple[Runner, EMAHook, AmpOptimWrapper]:
        optimizer = dict(type="AdamW", lr=1e-3)
        scale = dict(init_scale=16.0, growth_interval=2)
        wrapper = dict(type="AmpOptimWrapper", dtype="bfloat16", loss_scale=scale, optimizer=optimizer)
        schedule = [dict(type="CosineAnnealingLR", by_epoch=False, T_max=5)]
        settings.update(optim_wrapper=wrapper, param_scheduler=schedule, custom_hooks=[dict(type="EMAHook")])
        made = make_runner(type(tiny_classifier)(apla=dict(r=8)), max_iters=3, **settings)
        made.train()
        (ema,) = (hook for hook in made.hooks if isinstance(hook, EMAHook))
        return made, ema, made.optim_wrapper

    written, averages, wrapper = make()
    path = checkpoint_of(written)
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(path, weights_only=True)  # all that mmengine 0.10.7 does by itself
    read = read_checkpoint(path)
    assert_same(read, torch.load(path, weights_only=False))
    assert read["optimizer"]["loss_scaler"]["scale"] == 32.0 and read["ema_state_dict"] and read["param_schedulers"]

    resumed, averages_again, wrapper_again = make(resume=True)  # nothing is left to do
    assert resumed.iter == 3
    assert_same(dict(resumed.model.state_dict()), dict(written.model.state_dict()))
    assert_same(dict(averages_again.ema_model.state_dict()), dict(averages.ema_model.state_dict()))
    assert_same(wrapper_again.state_dict(), wrapper.state_dict())
    assert_same(resumed.message_hub.log_scalars["train/loss"], written.message_hub.log_scalars["train/loss"])


@pytest.mark.parametrize("harmful", HARMFUL)
def test_runner_resumes_from_no_harmful_file(
    tiny_classifier: nn.Module,
    make_runner: Callable[..., Runner],
    tmp_path: Path,
    no_side_effect: Path,
    harmful: type[RunsACommand],
) -> None:
    content = dict(state_dict={}, optimizer={}, meta=dict(iter=1, epoch=0), message_hub=harmful(no_side_effect))
    torch.save(content, tmp_path / "c.pth")
    runner = make_runner(tiny_classifier, resume=True, load_from=str(tmp_path / "c.pth"))
    with pytest.raises(ValueError, match=r"c\.pth' was not read"):
        runner.train()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"hello, world\n",
        b"epoch,loss\n1,0.5\n",
        b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        b'{"state_dict": {}}\n',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        b"\x80\x02}q\x00",
        bytes(range(256)),
    ],
)
def test_file_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "c.pth").write_bytes(content)
    with pytest.raises(ValueError, match=r"c\.pth' was not read"):
        read_checkpoint(str(tmp_path / "c.pth"))


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_truncated_checkpoint_is_an_error_that_names_it(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "c.pth"
    torch.save(dict(state_dict=nn.Linear(50, 50).state_dict()), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"c\.pth' was not read"):
        read_checkpoint(str(path))


def test_missing_file_is_an_error_that_names_it_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"'lost\.pth': no such file \(looked in {tmp_path}\)"):
        read_checkpoint("lost.pth")
    with pytest.raises(FileNotFoundError, match="no such file"):
        read_checkpoint(str(tmp_path))


@pytest.fixture
def saved(tiny_classifier: nn.Module, make_runner: Callable[..., Runner], tmp_path: Path) -> Path:
    """The folder of a run that saved a delta, a checkpoint without what is frozen, and their base."""
    hooks = dict(checkpoint=dict(type="AtomicCheckpointHook", interval=3, by_epoch=False))
    custom = [dict(type="APLAHook", save="delta"), dict(type="EMAHook")]
    make_runner(tiny_classifier, max_iters=3, default_hooks=hooks, custom_hooks=custom).train()
    return tmp_path / "work"


DELTA, SLIM = "iter_3.delta.safetensors", "iter_3.pth"
PROJ = "backbone.vit.blocks.0.attn.proj"


def change_header(state: dict, change: Callable[[dict], Any]) -> None:
    about = json.loads(state[None])
    change(about["header"])
    state[None] = json.dumps(about)


def forge(state: dict, key: str, tensor: torch.Tensor) -> None:
    """Puts a tensor in, with the right digest."""
    about = json.loads(state[None])
    state[key] = tensor
    about["sha256"] = content_digest(about["header"], {key: tensor for key, tensor in state.items() if key is not None})
    state[None] = json.dumps(about)


@pytest.fixture
def refuses(tiny_classifier: nn.Module) -> Callable[[Path, str], None]:
    """Checks that mmengine gets an error, and the model nothing."""

    def check(path: Path, message: str) -> None:
        torch.manual_seed(5)
        model = type(tiny_classifier)(apla=dict(r=8))
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with pytest.raises(DeltaError, match=message):
            load_checkpoint(model, str(path))
        assert_same(dict(model.state_dict()), before)

    return check


@pytest.mark.parametrize("name", [DELTA, SLIM])
def test_base_is_looked_for_where_it_may_be(saved: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = read_checkpoint(saved / name)["state_dict"]
    (base,) = saved.glob("base-*")
    for folder in (saved / "bases", saved.parent / "bases", saved.parent / "far/away"):
        folder.mkdir(parents=True)
        base = base.rename(folder / base.name)
        if folder.name == "away":
            monkeypatch.setenv("APLA_MM_BASES", os.pathsep.join(["/nowhere", str(folder)]))
        assert_same(dict(read_checkpoint(saved / name)["state_dict"]), dict(whole))


@pytest.mark.parametrize("name", [DELTA, SLIM])
def test_missing_base_is_an_error_that_names_it_and_the_folders(
    saved: Path, name: str, refuses: Callable[[Path, str], None]
) -> None:
    (base,) = saved.glob("base-*")
    base.unlink()
    refuses(saved / name, rf"{name}' needs its base, the file '{base.name}', .*'{saved}'.*APLA_MM_BASES")


@pytest.mark.parametrize("name", [DELTA, SLIM])
def test_other_base_is_refused(saved: Path, name: str, refuses: Callable[[Path, str], None]) -> None:
    (base,) = saved.glob("base-*")
    state = load_file(base)
    state["idle.weight"] += 1
    save_file(state, base)
    refuses(saved / name, "by its tensors it would be called 'base-")
    # one that is what its name says, and that the delta is made to name
    other = save_base(state, saved)
    if name == DELTA:
        delta = load_delta(saved / DELTA)
        delta.header.extra["base_file"] = other.name
        save_delta(delta, saved / DELTA)
    else:
        rewrite_header(saved / SLIM, base.name, other.name)
    refuses(saved / name, r"trained on another base.*1 differ: 'idle\.weight'")


def rewrite_header(path: Path, old: str, new: str) -> None:
    checkpoint = read_pickle(path, "cpu")
    state = checkpoint["state_dict"]
    assert old in state[None]
    state[None] = state[None].replace(old, new)
    about = json.loads(state[None])
    state[None] = json.dumps(
        about
        | dict(
            sha256=content_digest(about["header"], {key: tensor for key, tensor in state.items() if key is not None})
        )
    )
    torch.save(checkpoint, path)


@pytest.mark.parametrize("base", ["../work/base-{}.safetensors", "/etc/passwd", "weights.safetensors"])
def test_base_is_a_name_without_a_folder(saved: Path, base: str, refuses: Callable[[Path, str], None]) -> None:
    (path,) = saved.glob("base-*")
    rewrite_header(saved / SLIM, path.name, base.format(path.name[5:21]))
    refuses(saved / SLIM, "its base file must be called base-<16 hexadecimal digits>")


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_delta_is_an_error_that_names_it(
    saved: Path, share: float, refuses: Callable[[Path, str], None]
) -> None:
    path = saved / DELTA
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    refuses(path, rf"delta '{path}': .*copy it again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({None: "{"}), "its header is not JSON"),
        (lambda state: state.update({None: "[]"}), "its header is not a JSON object"),
        (lambda state: state.update({None: 5}), "its header is not JSON"),
        (lambda state: state.update({"other/x": torch.ones(1)}), "'other/x' is neither of channels, rows nor tensors"),
        (lambda state: state.update({"tensors/x": "y"}), "'tensors/x' is neither"),
        (lambda state: state.update({"tensors/x": torch.ones(1)}), "SHA-256 is not the one it names"),
        (lambda state: state.pop("tensors/head.weight"), "SHA-256 is not the one it names"),
        (lambda state: state["tensors/head.weight"].add_(1), "SHA-256 is not the one it names"),
        (lambda state: change_header(state, lambda header: header.update(version=9)), "install a newer apla_mm"),
        (lambda state: change_header(state, lambda header: header["base"].pop("idle.weight")), "SHA-256 is not the"),
        (lambda state: forge(state, f"channels/{PROJ}", torch.arange(8) + 30), "has 32 channels, and 37"),
        (lambda state: forge(state, f"channels/{PROJ}", torch.zeros(8).long()), "must be distinct"),
        (lambda state: forge(state, f"rows/{PROJ}.weight", torch.ones(8, 5)), "do not fit in the target"),
        (lambda state: forge(state, "tensors/../x", torch.ones(1)), "are not names of tensors"),
    ],
)
def test_damaged_checkpoint_without_what_is_frozen_is_refused(
    saved: Path, change: Callable[[dict], Any], message: str, refuses: Callable[[Path, str], None]
) -> None:
    checkpoint = read_pickle(saved / SLIM, "cpu")
    change(checkpoint["state_dict"])
    torch.save(checkpoint, saved / SLIM)
    refuses(saved / SLIM, message)


def test_delta_goes_where_map_location_says_and_brings_no_config_that_mmengine_would_run(saved: Path) -> None:
    for name in (DELTA, SLIM):
        read = read_checkpoint(saved / name, "meta")
        assert {tensor.device.type for tensor in read["state_dict"].values()} == {"meta"}
        assert read["meta"]["iter"] == 3 and "config" not in read["meta"]
        means = read.get("ema_state_dict", {}).values()
        assert all(tensor.device.type == "meta" for tensor in means) and (means or name == DELTA)
    delta = load_delta(saved / DELTA)
    delta.header.extra["meta"] = repr({"config": "harm()", "cfg": "harm()", "seed": 3})
    save_delta(delta, saved / DELTA)
    assert read_checkpoint(saved / DELTA)["meta"] == {"seed": 3}


@pytest.mark.parametrize("text", ["[1]", "harm()", "{", "(" * 9999, "{'a': 1}" + " " * 2**20, {"a": 1}])
def test_meta_that_is_no_text_of_plain_values_is_refused(
    saved: Path, refuses: Callable[[Path, str], None], text: Any
) -> None:
    delta = load_delta(saved / DELTA)
    delta.header.extra["meta"] = text
    save_delta(delta, saved / DELTA)
    refuses(saved / DELTA, "'meta' is not the text of a dict")


def test_state_dict_in_a_safetensors_file_is_read_and_a_base_is_not(saved: Path, tiny_classifier: nn.Module) -> None:
    state = {name: tensor.clone() for name, tensor in tiny_classifier.state_dict().items()}
    save_file(state, saved / "weights.safetensors")
    assert_same(
        read_checkpoint(saved / "weights.safetensors"),
        dict(meta={}, state_dict=load_file(saved / "weights.safetensors")),
    )
    (base,) = saved.glob("base-*")
    with pytest.raises(ValueError, match="is a base, without what was trained"):
        read_checkpoint(base)


def test_delta_is_known_by_its_content_not_its_name(saved: Path) -> None:
    renamed = shutil.copy(saved / DELTA, saved / "best.pth")
    assert_same(read_checkpoint(renamed), read_checkpoint(saved / DELTA))


def test_delta_that_names_no_base_says_how_to_use_it(saved: Path, refuses: Callable[[Path, str], None]) -> None:
    delta = load_delta(saved / DELTA)
    del delta.header.extra["base_file"]
    save_delta(delta, saved / DELTA)
    refuses(saved / DELTA, "does not name its base file: merge both by")
