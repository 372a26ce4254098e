import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner

pytestmark = pytest.mark.slow


class Spoil(Hook):
    """Makes a parameter, or a loss by way of the head, NaN or infinite before an iteration."""

    def __init__(self, iteration: int, value: float, where: str = "decode_head.conv_seg.bias") -> None:
        self.iteration, self.value, self.where = iteration, value, where

    def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter + 1 == self.iteration:
            runner.model.get_parameter(self.where).data.fill_(self.value)


def build(cfg: Config, *hooks: Hook) -> Runner:
    cfg.train_cfg.update(max_iters=6, val_interval=6)
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=2)
    runner = Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook, "VERY_HIGH")
    return runner


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_loss_that_is_not_finite_stops_with_iteration_images_and_last_checkpoint(
    segmentation_config: Config, data_root: Path, value: float
) -> None:
    runner = build(segmentation_config, Spoil(3, value))
    images: list[list[str]] = []

    class Note(Hook):
        def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
            images.append([sample.img_path for sample in data_batch["data_samples"]])

    runner.register_hook(Note())
    with pytest.raises(RuntimeError) as error:
        runner.train()
    text = str(error.value)
    assert re.match(r"iteration 3: (decode\.loss_ce|.*loss.*) nan", text)
    now, before = (", ".join(f"'{name}'" for name in names) for names in (images[2], images[1]))
    assert f"; images: {now}; " in text and f"may have been the cause: {before}; " in text
    work = Path(segmentation_config.work_dir)
    assert f"the last checkpoint is '{work / 'iter_2.pth'}', and --resume goes on from it" in text
    assert [path.name for path in work.glob("*.pth")] == ["iter_2.pth"]


def test_weights_that_are_not_finite_are_not_saved(segmentation_config: Config) -> None:
    class SpoilAfterwards(Spoil):
        def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
            super().before_train_iter(runner)

        def before_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
            pass

    runner = build(segmentation_config, SpoilAfterwards(4, torch.inf))
    with pytest.raises(RuntimeError, match=r"iteration 4: 'decode_head.conv_seg.bias' holds values .*iter_2\.pth"):
        runner.train()
    work = Path(segmentation_config.work_dir)
    assert [path.name for path in work.glob("*.pth")] == ["iter_2.pth"]
    assert (work / "last_checkpoint").read_text() == str(work / "iter_2.pth")


def test_without_images_or_checkpoints_it_says_so(tiny_classifier: Any, make_runner: Callable[..., Runner]) -> None:
    runner = make_runner(tiny_classifier, custom_hooks=[dict(type="FiniteLossHook"), Spoil(1, torch.nan, "head.bias")])
    with pytest.raises(RuntimeError, match="iteration 1: loss nan; images: unknown; .*there is no checkpoint yet"):
        runner.train()
