import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import ROOT
from helpers.comparisons import assert_same_checkpoint, clone
from helpers.processes import run_python
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.runs.hooks.stop_signal_hook import StopSignalHook
from apla_mm.runs.loader_workers import shield_workers

SIGNALS = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)


@pytest.fixture(autouse=True)
def handlers() -> Iterator[list[Any]]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield before
    shield_workers(False)
    for number, handler in zip(SIGNALS, before, strict=True):
        signal.signal(number, handler)


class Send(Hook):
    """Sends this process a signal in an iteration of training, or of validation."""

    def __init__(self, number: int, iteration: int, validating: bool = False) -> None:
        self.number, self.iteration, self.validating = number, iteration, validating

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if runner.iter == self.iteration and not self.validating:
            os.kill(os.getpid(), self.number)

    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == self.iteration and self.validating:
            os.kill(os.getpid(), self.number)


class Nothing(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, results: list) -> dict[str, float]:
        return {"zero": 0.0}


def stop(runner: Runner) -> int:
    with pytest.raises(SystemExit) as leaving:
        runner.train()
    return leaving.value.code


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_saves_after_the_iteration_and_training_goes_on_from_there(
    number: signal.Signals,
    tiny_classifier: nn.Module,
    make_runner: Callable[..., Runner],
    read_log: Callable[[], str],
    tmp_path: Path,
    handlers: list[Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    hooks = [dict(type="StopSignalHook"), Send(number, 2)]
    assert stop(make_runner(tiny_classifier, max_iters=6, custom_hooks=hooks)) == 128 + number
    path = tmp_path / "work/iter_3.pth"
    assert f"{number.name}: saving after this iteration, then leaving" in capfd.readouterr().err
    assert f"{number.name}: stopped after iteration 3: saved {path}; apla-mm train --resume goes on" in read_log()
    assert (tmp_path / "work/last_checkpoint").read_text() == str(path)
    assert [signal.getsignal(number) for number in SIGNALS] == handlers
    checkpoint = read_checkpoint(path)
    assert checkpoint["meta"]["iter"] == 3 and "optimizer" in checkpoint

    runner = make_runner(tiny_classifier, max_iters=6, resume=True, custom_hooks=[StopSignalHook()])
    seen: list[int] = []
    runner.register_hook(type("Seen", (Hook,), {"before_train_iter": lambda *_, **__: seen.append(runner.iter)})())
    runner.train()
    assert seen == [3, 4, 5]
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


def test_what_the_checkpoint_hook_has_just_saved_is_not_saved_again(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    saved: list[str] = []
    save = Runner.save_checkpoint

    def noted(self: Runner, folder: str, name: str, *rest: Any, **settings: Any) -> None:
        saved.append(name)
        save(self, folder, name, *rest, **settings)

    monkeypatch.setattr(Runner, "save_checkpoint", noted)
    runner = make_runner(tiny_classifier, 3, train_cfg=dict(by_epoch=False, max_iters=9))
    for hook in (StopSignalHook(), Send(signal.SIGTERM, 2)):
        runner.register_hook(hook)
    assert stop(runner) == 143
    assert saved == ["iter_3.pth"]
    assert (tmp_path / "work/last_checkpoint").read_text().endswith("work/iter_3.pth")


def test_signal_in_a_validation_saves_what_was_trained(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], tmp_path: Path, read_log: Callable[[], str]
) -> None:
    runner = make_runner(
        tiny_classifier,
        max_iters=6,
        train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2),
        val_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32), labels=0)] * 16, batch_size=2),
        val_cfg=dict(),
        val_evaluator=Evaluator(Nothing()),
        custom_hooks=[StopSignalHook(), Send(signal.SIGUSR1, 1, validating=True)],
    )
    assert stop(runner) == 138
    assert "SIGUSR1: stopped after iteration 2: saved" in read_log()
    assert read_checkpoint(tmp_path / "work/iter_2.pth")["meta"]["iter"] == 2
    assert "Iter(val) [3/8]" not in read_log()


def test_epoch_that_was_cut_short_begins_again(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    settings = dict(
        train_cfg=dict(by_epoch=True, max_epochs=3),
        default_hooks=dict(checkpoint=dict(type="CheckpointHook", interval=1)),
    )
    hooks = [StopSignalHook(), Send(signal.SIGTERM, 8 + 3)]
    assert stop(make_runner(tiny_classifier, custom_hooks=hooks, **settings)) == 143
    work = tmp_path / "work"
    assert {path.name for path in work.glob("*.pth")} == {"epoch_1.pth", "iter_12.pth"}
    assert (work / "last_checkpoint").read_text() == str(work / "iter_12.pth")
    runner = make_runner(tiny_classifier, resume=True, **settings)
    runner.train()
    assert (runner.epoch, runner.iter) == (3, 24)


def test_without_a_checkpoint_hook_it_leaves_and_says_so(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    hooks = dict(checkpoint=None, stop=StopSignalHook())
    runner = make_runner(tiny_classifier, max_iters=4, default_hooks=hooks, custom_hooks=[Send(signal.SIGTERM, 1)])
    assert stop(runner) == 143
    assert "stopped after iteration 2: no CheckpointHook, not saved; exit code 143" in read_log()


def test_second_ctrl_c_ends_the_process(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], capfd: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    class Look(Hook):
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            seen.append(signal.getsignal(signal.SIGINT))

    hooks = [StopSignalHook(), Send(signal.SIGINT, 1), Look()]
    assert stop(make_runner(tiny_classifier, max_iters=4, custom_hooks=hooks)) == 130
    assert callable(seen[0]) and seen[1:] == [signal.SIG_DFL]
    assert "once more stops at once" in capfd.readouterr().err


def test_no_signals_switch_it_off_and_wrong_ones_are_named(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], handlers: list[Any]
) -> None:
    class Look(Hook):
        def after_train_iter(self, *_: Any, **__: Any) -> None:
            assert [signal.getsignal(number) for number in SIGNALS] == handlers

    make_runner(tiny_classifier, custom_hooks=[StopSignalHook(signals=[]), Look()]).train()
    with pytest.raises(ValueError, match="there is no signal USR1, SIGX; names are such as 'SIGUSR1'"):
        StopSignalHook(signals=["USR1", "SIGTERM", "SIGX"])


def test_every_config_has_the_hook_though_it_lists_its_own_hooks() -> None:
    configs = sorted(ROOT.glob("configs/[csd][el][gst]/*.py"))
    assert configs
    for path in configs:
        settings = Config.fromfile(path).default_hooks.stop_signal
        assert isinstance(HOOKS.build(settings), StopSignalHook), path


def test_forked_processes_end_by_their_parents_sigterm_alone() -> None:
    code = """
        import importlib.util, multiprocessing, os, signal, subprocess, sys, time
        spec = importlib.util.spec_from_file_location("loader_workers", sys.argv[1])
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def work(ready):
            ready.set()
            time.sleep(60)

        def start():
            context = multiprocessing.get_context("fork")
            ready = context.Event()
            process = context.Process(target=work, args=(ready,), daemon=True)
            process.start()
            ready.wait()
            return process

        module.shield_workers(True)
        process = start()
        for name in ("INT", "USR1", "TERM"):
            subprocess.run(["/bin/kill", f"-{name}", str(process.pid)], check=True)
        process.join(0.5)
        print(process.is_alive())
        process.terminate()
        process.join()
        print(process.exitcode)
        module.shield_workers(False)
        process = start()
        subprocess.run(["/bin/kill", "-TERM", str(process.pid)], check=True)
        process.join()
        print(process.exitcode)
    """
    done = run_python(code, sys.modules[shield_workers.__module__].__file__)
    assert done.stdout.split() == ["True", "0", "-15"]


def test_gradients_that_are_accumulated_are_not_lost(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    wrapper = dict(optimizer=dict(type="SGD", lr=0.1), accumulative_counts=3)
    hooks = [dict(type="StopSignalHook"), Send(signal.SIGTERM, 3)]
    assert stop(make_runner(tiny_classifier, max_iters=12, optim_wrapper=wrapper, custom_hooks=hooks)) == 143
    assert [path.name for path in (tmp_path / "work").glob("*.pth")] == ["iter_6.pth"]


def test_signal_in_a_validation_saves_the_weights_of_training_and_their_mean_apart(
    tiny_classifier: nn.Module, make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    """EMAHook exchanges them for a validation."""
    settings = dict(
        max_iters=6,
        train_cfg=dict(by_epoch=False, max_iters=6, val_interval=2),
        val_dataloader=DataLoader([dict(inputs=torch.zeros(3, 32, 32), labels=0)] * 16, batch_size=2),
        val_cfg=dict(),
        val_evaluator=Evaluator(Nothing()),
    )
    start = clone(tiny_classifier.state_dict())
    ema = dict(type="EMAHook", momentum=0.1)
    saving = dict(checkpoint=dict(type="CheckpointHook", interval=2, by_epoch=False))
    make_runner(tiny_classifier, custom_hooks=[ema], default_hooks=saving, **settings).train()
    expected = read_checkpoint(tmp_path / "work/iter_2.pth")
    (tmp_path / "work/iter_2.pth").unlink()
    tiny_classifier.load_state_dict(start)
    hooks = [ema, dict(type="StopSignalHook"), Send(signal.SIGUSR1, 1, validating=True)]
    assert stop(make_runner(tiny_classifier, custom_hooks=hooks, **settings)) == 138
    found = read_checkpoint(tmp_path / "work/iter_2.pth")
    assert_same_checkpoint(found, expected, ("state_dict", "ema_state_dict"))
    assert not torch.equal(found["state_dict"]["head.weight"], found["ema_state_dict"]["module.head.weight"])
