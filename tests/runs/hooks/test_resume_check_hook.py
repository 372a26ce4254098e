import copy
import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.comparisons import assert_same, clone
from helpers.data_sets import write_scenes
from helpers.logs import log_of
from helpers.small_configs import segmentation_config
from mmengine.config import Config
from mmengine.runner import Runner

from apla_mm.loading.checkpoint_reader import read_checkpoint

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """A run of two iterations that was saved after the first."""
    folder = tmp_path_factory.mktemp("trained")
    cfg = segmentation_config(write_scenes(folder / "scenes"), folder / "work")
    cfg.train_cfg.update(max_iters=2, val_interval=10)
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=1)
    cfg.randomness = dict(seed=0)
    Runner.from_cfg(cfg).train()
    return cfg


@pytest.fixture
def config(trained: Config, tmp_path: Path) -> Config:
    """To resume a copy of that checkpoint."""
    cfg = copy.deepcopy(trained)
    cfg.resume, cfg.load_from = True, str(shutil.copy(Path(cfg.work_dir, "iter_1.pth"), tmp_path))
    cfg.work_dir = str(tmp_path / "work")
    return cfg


def resume(cfg: Config) -> Runner:
    cfg.experiment_name = uuid.uuid4().hex
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_same_settings_are_resumed_wherever_files_lie_and_however_they_are_read(config: Config, tmp_path: Path) -> None:
    dataset = config.train_dataloader.dataset
    dataset.data_root = str(shutil.copytree(dataset.data_root, tmp_path / "moved"))
    config.train_dataloader.num_workers = 1
    config.train_cfg.update(max_iters=3, val_interval=20)
    config.model.backbone.apla.recompute = "block"
    config.train_cfg.skip_unreadable = True
    config.custom_hooks = [
        dict(type="DataCheckHook", time_limit=1.0),
        dict(type="EmptyCacheHook"),
        *config.custom_hooks[1:],
    ]
    config.default_hooks.resume_check.allow = "custom_hooks.EmptyCacheHook"
    assert resume(config).iter == 3


def change_schedule(cfg: Config) -> None:
    cfg.param_scheduler[1].power = 0.5


def change_rate(cfg: Config) -> None:
    cfg.optim_wrapper.optimizer.lr = 0.5


def change_seed(cfg: Config) -> None:
    cfg.randomness.seed = 1


def change_augmentation(cfg: Config) -> None:
    cfg.train_dataloader.dataset.pipeline = [s for s in cfg.train_dataloader.dataset.pipeline if s.type != "RandomFlip"]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (change_schedule, "param_scheduler.1.power: 1.0 then, 0.5 now, and stays as it was saved"),
        (change_rate, "optim_wrapper.optimizer.lr: 0.0003 then, 0.5 now, and stays as it was saved"),
        (change_seed, "randomness.seed: 0 then, 1 now, and stays as it was saved"),
        (change_augmentation, r"train_dataloader.dataset.pipeline.\d.type: \"RandomFlip\" then"),
    ],
)
def test_other_settings_are_refused_by_name_unless_allowed(config: Config, change: Any, told: str) -> None:
    change(config)
    with pytest.raises(ValueError, match=f"a run with other settings:\n(.|\n)*{told}") as error:
        resume(config)
    option = str(error.value).split("default_hooks.resume_check.allow=")[1].split(";")[0]
    config.default_hooks.resume_check.allow = option
    assert resume(config).iter == config.train_cfg.max_iters


def test_number_of_processes_is_compared(config: Config) -> None:
    path = Path(config.load_from)
    checkpoint = read_checkpoint(path)
    record = json.loads(checkpoint["meta"]["apla_mm"])
    assert record["config"]["processes"] == "1"
    record["config"]["processes"] = "8"
    checkpoint["meta"]["apla_mm"] = json.dumps(record)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match="processes: 8 then, 1 now"):
        resume(config)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("r", 3, r"channels of backbone.vit.blocks.0.attn.proj: 4 \(\w+\) then, 3 \(\w+\) now"),
        ("seed", 1, r"channels of backbone.vit.blocks.0.attn.proj: 4 \(\w+\) then, 4 \(\w+\) now"),
        ("r", "full", r"channels of backbone.vit.blocks.0.attn.proj: 4 \(\w+\) then, frozen now"),
    ],
)
def test_other_channels_are_refused_whatever_is_allowed_and_nothing_is_loaded(
    config: Config, key: str, value: Any, told: str
) -> None:
    config.model.backbone.apla[key] = value
    config.default_hooks.resume_check.allow = "model"
    config.experiment_name = uuid.uuid4().hex
    runner = Runner.from_cfg(config)
    before = clone(runner.model.state_dict())
    runner._init_model_weights = lambda: None
    with pytest.raises(ValueError, match=f"other parameters trained:\n(.|\n)*{told}"):
        runner.train()
    assert_same(runner.model.state_dict(), before)


def test_weights_alone_are_loaded_from_any_checkpoint(config: Config) -> None:
    change_rate(config)
    config.model.backbone.apla.update(r=3)
    config.resume = False
    assert resume(config).iter == 2


@pytest.mark.parametrize("left_out", ["optimizer", "meta"])
def test_checkpoint_without_what_resuming_needs_is_refused(config: Config, left_out: str) -> None:
    checkpoint = read_checkpoint(config.load_from)
    del checkpoint[left_out]
    torch.save(checkpoint, config.load_from)
    with pytest.raises(ValueError, match="holds no optimizer or iteration.*set load_from"):
        resume(config)


def test_checkpoint_of_another_tool_is_resumed_and_told(config: Config) -> None:
    checkpoint = read_checkpoint(config.load_from)
    del checkpoint["meta"]["apla_mm"]
    torch.save(checkpoint, config.load_from)
    runner = resume(config)
    assert runner.iter == 2
    assert "the checkpoint has no record of its run" in log_of(Path(config.work_dir))


@pytest.mark.parametrize(
    "record", ["", "[]", '{"config": {}, "trains": []}', '{"config": {"a": 1}, "trains": {}}', "[" * 9999, 5]
)
def test_damaged_record_is_refused(config: Config, record: Any) -> None:
    checkpoint = read_checkpoint(config.load_from)
    checkpoint["meta"]["apla_mm"] = record
    torch.save(checkpoint, config.load_from)
    with pytest.raises(ValueError, match=r"record of its run, meta\['apla_mm'\], is damaged"):
        resume(config)
