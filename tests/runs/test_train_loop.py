"""ResumableTrainLoop against runs that were never cut."""

import contextlib
import copy
import multiprocessing
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import small_configs
from helpers.comparisons import assert_same, assert_same_checkpoint, clone
from helpers.data_sets import write_scenes
from helpers.logs import log_of, scalars_of
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import RUNNERS
from mmengine.runner import Runner
from torch.utils.data import DataLoader, IterableDataset

from apla_mm.data.reading import DataError
from apla_mm.loading.checkpoint_reader import read_checkpoint

pytestmark = pytest.mark.slow

ITERATIONS = 6


class Leaving(Exception):
    pass


class Leave(Hook):
    """Ends training after an iteration, or in a validation, as an error would."""

    def __init__(self, iteration: int, validating: bool = False) -> None:
        self.iteration, self.validating = iteration, validating

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter + 1 == self.iteration and not self.validating:
            raise Leaving

    def after_val_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        if runner.iter == self.iteration and self.validating:
            raise Leaving


def lengthen(cfg: Config, work_dir: Path) -> Config:
    """Random augmentation, dropout, stochastic depth, a the EMA; a checkpoint after every second iteration."""
    cfg = copy.deepcopy(cfg)
    cfg.train_cfg.update(max_iters=ITERATIONS, val_interval=ITERATIONS)
    cfg.train_dataloader.dataset.pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="LoadAnnotations"),
        dict(type="RandomResize", scale=(64, 64), ratio_range=(0.5, 2.0), keep_ratio=True),
        dict(type="RandomCrop", crop_size=(32, 32)),
        dict(type="RandomFlip", prob=0.5),
        dict(type="PhotoMetricDistortion"),
        dict(type="PackSegInputs"),
    ]
    cfg.model.backbone.model_kwargs.drop_path_rate = 0.5
    cfg.model.decode_head.dropout_ratio = 0.5
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=2, max_keep_ckpts=-1)
    cfg.default_hooks.logger.interval = 1
    cfg.custom_hooks = [dict(type="APLAHook"), dict(type="EMAHook", momentum=0.2)]
    cfg.visualizer.vis_backends = [dict(type="LocalVisBackend")]
    cfg.visualizer.name = cfg.experiment_name = uuid.uuid4().hex
    cfg.work_dir = str(work_dir)
    return cfg


def train(cfg: Config, *hooks: Hook) -> None:
    runner = RUNNERS.build(cfg) if "runner_type" in cfg else Runner.from_cfg(cfg)
    for hook in hooks:
        runner.register_hook(hook, "LOWEST")
    with contextlib.suppress(Leaving):
        runner.train()


def losses(work_dir: Path) -> dict[int, list[float]]:
    found: dict[int, list[float]] = {}
    for line in scalars_of(work_dir):
        if "loss" in line:
            found.setdefault(line["iter"], []).append(line["loss"])
    return found


def validations(work_dir: Path) -> list[int]:
    return [line["step"] for line in scalars_of(work_dir) if "mIoU" in line]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Config, Path]:
    """A config without a seed, and a run of it that was never cut; it drew a seed, which the config then has."""
    folder = tmp_path_factory.mktemp("whole")
    cfg = lengthen(small_configs.segmentation_config(write_scenes(folder / "scenes"), folder), folder / "work")
    train(cfg)
    cfg.randomness = dict(seed=read_checkpoint(folder / "work/iter_2.pth")["meta"]["seed"])
    return cfg, folder / "work"


@pytest.mark.parametrize("workers", [0, 2])
def test_run_that_was_cut_gives_the_losses_and_weights_of_one_that_was_not(
    whole: tuple[Config, Path], tmp_path: Path, workers: int
) -> None:
    cfg = lengthen(whole[0], tmp_path / "work")
    cfg.train_dataloader.num_workers = workers
    train(cfg, Leave(3))
    assert not (tmp_path / "work/iter_4.pth").exists()
    cfg.pop("randomness")  # the checkpoint has the seed
    cfg.resume, cfg.experiment_name = True, uuid.uuid4().hex
    cfg.default_hooks.resume_check.allow = "randomness"
    train(cfg)
    assert_same_checkpoint(tmp_path / f"work/iter_{ITERATIONS}.pth", whole[1] / f"iter_{ITERATIONS}.pth")
    expected = {i: values[0] for i, values in losses(whole[1]).items()}
    assert len(set(expected.values())) == ITERATIONS
    assert losses(tmp_path / "work") == {i: [loss] * (2 if i == 3 else 1) for i, loss in expected.items()}


def test_checkpoint_may_be_named(whole: tuple[Config, Path], tmp_path: Path) -> None:
    cfg = lengthen(whole[0], tmp_path / "work")
    cfg.resume, cfg.load_from = True, str(whole[1] / "iter_4.pth")
    cfg.default_hooks.resume_check.allow = "randomness"
    train(cfg)
    assert_same_checkpoint(tmp_path / f"work/iter_{ITERATIONS}.pth", whole[1] / f"iter_{ITERATIONS}.pth")
    assert list(losses(tmp_path / "work")) == [5, 6]


def test_validation_that_was_cut_is_done_first(whole: tuple[Config, Path], tmp_path: Path) -> None:
    cfg = lengthen(whole[0], tmp_path / "work")
    cfg.train_cfg.val_interval = 4
    cfg.default_hooks.checkpoint.update(save_best="mIoU")
    train(cfg, Leave(4, validating=True))
    work = tmp_path / "work"
    assert not list(work.glob("best*"))
    cfg.resume, cfg.experiment_name = True, uuid.uuid4().hex
    train(cfg)
    assert validations(work) == [4, ITERATIONS]
    assert len(list(work.glob("best_mIoU_iter_*.pth"))) == 1


@pytest.mark.parametrize("cut", [4, 5])
def test_validations_are_due_by_the_interval_of_their_time(
    whole: tuple[Config, Path], tmp_path: Path, cut: int
) -> None:
    cfg = lengthen(whole[0], tmp_path / "work")
    cfg.train_cfg.update(val_interval=4, dynamic_intervals=[(5, 1)])
    cfg.default_hooks.checkpoint.interval = 1
    train(cfg, Leave(cut, validating=cut == 5))
    cfg.resume, cfg.experiment_name = True, uuid.uuid4().hex
    train(cfg)
    assert validations(tmp_path / "work") == [4, 5, 6]


def test_loader_without_a_config_is_resumed_too(
    tiny_classifier: Any, make_runner: Callable[..., Runner], tmp_path: Path
) -> None:
    settings = dict(train_cfg=dict(type="ResumableTrainLoop", max_iters=10), randomness=dict(seed=1))
    start = clone(tiny_classifier.state_dict())
    make_runner(tiny_classifier, 10, **settings).train()
    expected = clone(tiny_classifier.state_dict())
    tiny_classifier.load_state_dict(start)
    with pytest.raises(Leaving):
        make_runner(tiny_classifier, 3, custom_hooks=[Leave(5)], **settings).train()
    make_runner(tiny_classifier, 3, resume=True, **settings).train()
    assert_same(tiny_classifier.state_dict(), expected)


class KillWorker(Hook):
    """Kills a loader's worker and waits, so that torch notices it anywhere but where a batch is taken."""

    def __init__(self, when: str) -> None:
        setattr(self, when, self.kill)

    def kill(self, runner: Runner, *_: Any, **__: Any) -> None:
        multiprocessing.active_children()[0].kill()
        threading.Event().wait(10)  # the handler of SIGCHLD raises


@pytest.mark.parametrize("when", ["before_train_iter", "before_val_iter"])
def test_death_of_a_worker_is_told_wherever_it_is_noticed(
    segmentation_config: Config, tmp_path: Path, when: str
) -> None:
    cfg = lengthen(segmentation_config, tmp_path / "work")
    cfg.train_cfg.val_interval = cfg.train_dataloader.num_workers = cfg.val_dataloader.num_workers = 1
    with pytest.raises(RuntimeError, match="^a worker of a data loader died: DataLoader worker .* is killed by signal"):
        train(cfg, KillWorker(when))
    assert torch.is_grad_enabled()


def test_data_without_indices_are_refused(tiny_classifier: Any, make_runner: Callable[..., Runner]) -> None:
    class Stream(IterableDataset):
        def __iter__(self) -> Iterator[int]:
            return iter(())

    runner = make_runner(
        tiny_classifier,
        train_dataloader=DataLoader(Stream(), batch_size=None),
        train_cfg=dict(type="ResumableTrainLoop", max_iters=2),
    )
    with pytest.raises(ValueError, match="reads data sets by indices, in batches; use IterBasedTrainLoop"):
        runner.train()


def test_corrupt_images_are_told_before_training_and_skipped(segmentation_config: Config, data_root: Path) -> None:
    (path,) = (data_root / "images/training").glob("scene_1.*")
    path.write_bytes(path.read_bytes()[:30])
    segmentation_config.train_cfg.update(max_iters=3, skip_unreadable=True)
    Runner.from_cfg(segmentation_config).train()
    log = log_of(Path(segmentation_config.work_dir))
    told = f"the image '{path}' cannot be read"
    assert f"train_dataloader: 1 samples will be skipped, as train_cfg.skip_unreadable says: {told}" in log
    assert f"skipped: {told}" in log
    assert "2 times a sample could not be read and was skipped; the log names each" in log
    segmentation_config.train_cfg.skip_unreadable = False
    segmentation_config.experiment_name = uuid.uuid4().hex
    with pytest.raises(DataError, match=told):
        Runner.from_cfg(segmentation_config).train()
