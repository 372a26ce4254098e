"""Checkpoints under mmengine: what it reads itself, which loader reads what, and its pickles read without running."""

import inspect
import os
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import mmengine.runner.checkpoint
import numpy as np
import pytest
import torch
from mmengine.hooks import EMAHook
from mmengine.logging import HistoryBuffer, history_buffer
from mmengine.optim import AmpOptimWrapper
from mmengine.optim.optimizer import amp_optimizer_wrapper
from mmengine.runner import CheckpointLoader, Runner, load_checkpoint, save_checkpoint
from torch import nn

from apla_mm.internals import SCHEME
from apla_mm.loading.checkpoint_reader import load_from_apla_mm, load_from_safetensors, mmengines_types, read_checkpoint


def same(a: Any, b: Any, path: str = "checkpoint") -> None:
    assert type(a) is type(b), path
    if isinstance(a, torch.Tensor):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
    elif isinstance(a, np.ndarray):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(a, b, path)
    elif isinstance(a, dict):
        assert list(a) == list(b), path
        for key in a:
            same(a[key], b[key], f"{path}[{key!r}]")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), path
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            same(x, y, f"{path}[{i}]")
    elif isinstance(a, HistoryBuffer):
        same((a.data, a.max_length), (b.data, b.max_length), path)
    else:
        assert a == b, path


@pytest.fixture(autouse=True)
def _full_unpickling_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tools forbid it for their process, and tests that run them in this one leave that behind."""
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)


# what is mmengine's stays mmengine's


def test_loaders_are_mmengines_own_but_for_two_names_of_ours() -> None:
    own = mmengine.runner.checkpoint
    loaders = dict(CheckpointLoader._schemes)
    assert loaders.pop(r".*\.safetensors$") is load_from_safetensors
    assert loaders.pop(SCHEME) is load_from_apla_mm
    assert {loader.__module__ for loader in loaders.values()} == {own.__name__}
    assert loaders[""] is own.load_from_local and loaders["http://"] is loaders["https://"] is own.load_from_http
    functions = [one for one in vars(own).values() if inspect.isfunction(one)]
    assert own.load_state_dict in functions and own.load_from_local in functions
    assert [one for one in functions if one.__globals__["__name__"].startswith("apla_mm")] == []


@pytest.mark.parametrize(
    ("name", "loader"),
    [
        ("work/iter_3.pth", mmengine.runner.checkpoint.load_from_local),
        ("iter_3.safetensors.pth", mmengine.runner.checkpoint.load_from_local),
        ("http://host/iter_3.pth", mmengine.runner.checkpoint.load_from_http),
        ("https://host/iter_3.delta.safetensors", mmengine.runner.checkpoint.load_from_http),
        ("s3://bucket/iter_3.pth", mmengine.runner.checkpoint.load_from_ceph),
        ("iter_3.delta.safetensors", load_from_safetensors),
        ("/a folder/base.safetensors", load_from_safetensors),
    ],
)
def test_which_loader_takes_a_file(name: str, loader: Callable) -> None:
    assert CheckpointLoader._get_checkpoint_loader(name) is loader


# mmengine's own checkpoints


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
    same(checkpoint, torch.load(checkpoint_of(trained), weights_only=False))
    same(checkpoint["optimizer"], trained.optim_wrapper.state_dict())
    same(dict(checkpoint["state_dict"]), dict(trained.model.state_dict()))
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
    same(read_checkpoint(str(tmp_path / "c.pth")), written)


@pytest.mark.parametrize("core", ["core", "_core"])
def test_checkpoints_written_beside_either_numpy_are_read(tmp_path: Path, core: str) -> None:
    here, there = b"numpy._core.multiarray", f"numpy.{core}.multiarray".encode()
    content = pickle.dumps(dict(scalar=np.float64(0.25), array=np.arange(3.0)), protocol=2)
    assert content.count(here) == 2
    magic = [torch.serialization.MAGIC_NUMBER, torch.serialization.PROTOCOL_VERSION, {}]
    parts = [*(pickle.dumps(part, protocol=2) for part in magic), content.replace(here, there), pickle.dumps([], 2)]
    (tmp_path / "c.pth").write_bytes(b"".join(parts))
    same(read_checkpoint(str(tmp_path / "c.pth")), dict(scalar=np.float64(0.25), array=np.arange(3.0)))


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


@pytest.mark.parametrize(
    ("harmful", "refused"),
    [
        (RunsACommand, "it would run '(posix|nt).system'"),
        (OpensAFile, None),
        (ReachesForGlobals, "the attribute '__init__'"),
        (NamesAnotherAttribute, "the attribute 'register_statistics'"),
        (TakesMeanOfAnArray, "the attribute 'mean'"),
    ],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_else_is_made(tmp_path: Path, harmful: type[RunsACommand], refused: str | None, zipped: bool) -> None:
    content = dict(state_dict=dict(w=torch.ones(2)), extra=harmful(tmp_path / "marker"))
    torch.save(content, tmp_path / "c.pth", _use_new_zipfile_serialization=zipped)
    if refused is None:
        assert torch.equal(read_checkpoint(tmp_path / "c.pth")["state_dict"]["w"], torch.ones(2))
    else:
        with pytest.raises(ValueError, match=rf"c\.pth' cannot be read: .*{refused}"):
            read_checkpoint(tmp_path / "c.pth")
    assert "poisoned" not in vars(history_buffer) and not (tmp_path / "marker").exists()


def test_what_a_statistic_is_of_is_checked() -> None:
    (statistics,) = (one[0] for one in mmengines_types() if isinstance(one, tuple) and one[1] == "builtins.getattr")
    assert statistics(HistoryBuffer, "mean") is HistoryBuffer.mean
    for owner, name in ((HistoryBuffer, "__init__"), (np.ndarray, "mean"), (HistoryBuffer([1.0], [1]), "mean")):
        with pytest.raises(pickle.UnpicklingError, match=f"the attribute '{name}'"):
            statistics(owner, name)


def test_a_runner_resumes(trained: Runner, make_runner: Callable[..., Runner]) -> None:
    model = type(trained.model)(apla=dict(r=8))
    runner = make_runner(model, max_iters=3, resume=True)
    runner.train()  # nothing is left to do
    assert runner.iter == 3
    same(dict(model.state_dict()), dict(trained.model.state_dict()))
    same(runner.optim_wrapper.state_dict(), trained.optim_wrapper.state_dict())
    same(runner.message_hub.log_scalars["train/loss"], trained.message_hub.log_scalars["train/loss"])


@pytest.fixture
def scaling_on_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets mmengine scale losses without a GPU."""
    monkeypatch.setattr(amp_optimizer_wrapper, "is_cuda_available", lambda: True)
    monkeypatch.setattr(amp_optimizer_wrapper, "GradScaler", partial(torch.amp.GradScaler, "cpu"))


@pytest.mark.usefixtures("scaling_on_cpu")
def test_a_runner_resumes_weights_averages_and_loss_scale(
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
    read = read_checkpoint(path)
    same(read, torch.load(path, weights_only=False))
    assert read["optimizer"]["loss_scaler"]["scale"] == 32.0 and read["ema_state_dict"] and read["param_schedulers"]
    # all that the original mmengine does by itself, which has no list of these types
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(mmengines_types())
    same(read, torch.load(path, weights_only=True))
    torch.serialization.clear_safe_globals()
    torch.serialization.add_safe_globals(before)

    resumed, averages_again, wrapper_again = make(resume=True)  # nothing is left to do
    assert resumed.iter == 3
    same(dict(resumed.model.state_dict()), dict(written.model.state_dict()))
    same(dict(averages_again.ema_model.state_dict()), dict(averages.ema_model.state_dict()))
    same(wrapper_again.state_dict(), wrapper.state_dict())
    same(resumed.message_hub.log_scalars["train/loss"], written.message_hub.log_scalars["train/loss"])


@pytest.mark.parametrize("name", ["c.pth", "c.safetensors"])
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04",
        b"<!DOCTYPE html>\n<html><body>404</body></html>\n",
        b'{"state_dict": {}}\n',
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        bytes(range(256)),
    ],
)
def test_file_that_is_no_checkpoint_is_an_error_that_names_it(tmp_path: Path, content: bytes, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}' (cannot be read|is not a safetensors file)"):
        read_checkpoint(str(tmp_path / name))
    if name == "c.safetensors":
        with pytest.raises(ValueError, match=rf"{name}' is not a safetensors file, or damaged"):
            load_checkpoint(nn.Linear(2, 2), str(tmp_path / name))


def test_missing_file_is_an_error_that_names_it_and_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=rf"'lost\.pth': no such file \(looked in {tmp_path}\)"):
        read_checkpoint("lost.pth")
    with pytest.raises(
        FileNotFoundError, match=rf"checkpoint 'lost\.safetensors': no such file \(looked in {tmp_path}\)"
    ):
        load_checkpoint(nn.Linear(2, 2), "lost.safetensors")
    with pytest.raises(ValueError, match=f"'{tmp_path}' is not a file, but a folder or device"):
        read_checkpoint(str(tmp_path))
