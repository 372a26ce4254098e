"""mmengine's EMAHook beside APLA: the weights that train are those of a run without it, the averages those of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from helpers.comparisons import clone
from helpers.nets import TinyClassifier
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch.utils.data import DataLoader

from apla_mm.tuning.apla_hook import APLAHook

MOMENTUM = 0.3
State = dict[str, torch.Tensor]


class Nothing(BaseMetric):
    def process(self, *_: Any) -> None:
        self.results.append(0)

    def compute_metrics(self, _: Any) -> dict[str, float]:
        return dict(score=0.0)


class Watch(Hook):
    """Keeps the model as validations see it and, if asked for, as each iteration leaves it."""

    priority = "VERY_LOW"

    def __init__(self, steps: bool) -> None:
        self.keeps_steps = steps
        self.steps: list[State] = []
        self.validated: dict[int, State] = {}

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if self.keeps_steps:
            self.steps.append(clone(runner.model.state_dict()))

    def after_val_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        self.validated[runner.iter] = clone(runner.model.state_dict())


def run(
    make_runner: Callable[..., Runner], ways: dict[str, Any], interval: int, hooks: list[Any], steps: bool = False
) -> tuple[State, Watch]:
    torch.manual_seed(0)
    model, watch = TinyClassifier(**ways.get("model", {})), Watch(steps)
    runner = make_runner(
        model,
        max_iters=6,
        train_cfg=dict(by_epoch=False, max_iters=6, val_interval=interval),
        val_dataloader=DataLoader([dict(inputs=torch.ones(3, 32, 32), labels=0)] * 2, batch_size=2),
        val_cfg=dict(),
        val_evaluator=Evaluator(Nothing()),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.5)),
        custom_hooks=[APLAHook(**ways.get("hook", {})), *hooks, watch],
        default_hooks=dict(checkpoint=None),
    )
    runner.train()
    return clone(model.state_dict()), watch


def averages(steps: list[State], begin: int) -> dict[int, State]:
    """The averages after each number of iterations from ``begin`` on, as mmengine defines them."""
    found: dict[int, State] = {}
    for done, state in enumerate(steps, start=1):
        if done == max(begin, 1):
            found[done] = state
        elif done > begin:
            last = found[done - 1]
            found[done] = {name: (1 - MOMENTUM) * last[name] + MOMENTUM * tensor for name, tensor in state.items()}
    return found


@pytest.mark.parametrize("ways", [dict(model=dict(apla=dict(r=8))), dict(hook=dict(r=8))], ids=["backbone", "hook"])
@pytest.mark.parametrize(("begin", "interval"), [(0, 1), (0, 3), (3, 1), (3, 3), (3, 2)])
@pytest.mark.parametrize("update_buffers", [False, True])
def test_nothing_that_trained_is_undone_and_averages_are_of_it(
    make_runner: Callable[..., Runner], ways: dict[str, Any], begin: int, interval: int, update_buffers: bool
) -> None:
    expected, plain = run(make_runner, ways, interval, [], steps=True)
    ema = dict(
        type="EMAHook", momentum=MOMENTUM, begin_iter=begin, ema_type="ExponentialMovingAverage",
        update_buffers=update_buffers,
    )  # fmt: skip
    trained, watched = run(make_runner, ways, interval, [ema])
    torch.testing.assert_close(trained, expected, rtol=0, atol=0)
    right = averages(plain.steps, begin)
    assert watched.validated.keys() == plain.validated.keys()
    for done, state in watched.validated.items():
        # mmengine exchanges weights from one iteration earlier on, when the average is a copy still
        torch.testing.assert_close(state, right.get(done, plain.validated[done]), rtol=1e-5, atol=1e-6)
