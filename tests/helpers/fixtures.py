"""Fixtures of all tests: a small model under mmengine's Runner, small data sets, and configs that train on them."""

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import comparisons, small_configs
from helpers.data_sets import write_class_folders, write_coco, write_photos, write_scenes
from helpers.logs import log_of
from helpers.nets import TinyClassifier
from helpers.optional import needs
from mmengine.config import Config
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import DataLoader


@pytest.fixture
def assert_same() -> Callable[..., None]:
    """Fails unless two state dicts are equal to the bit."""
    return comparisons.assert_same


@pytest.fixture
def tiny_classifier() -> TinyClassifier:
    torch.manual_seed(0)
    return TinyClassifier(apla=dict(r=8))


@pytest.fixture
def make_runner(tmp_path: Path) -> Callable[..., Runner]:
    """Makes Runners of any model that takes images of 32 x 32; they write to tmp_path/work."""

    def make(model: nn.Module, max_iters: int = 2, **settings: Any) -> Runner:
        torch.manual_seed(1)
        samples = [dict(inputs=torch.randn(3, 32, 32), labels=i % 3) for i in range(16)]
        defaults: dict[str, Any] = dict(
            work_dir=str(tmp_path / "work"),
            train_dataloader=DataLoader(samples, batch_size=2),
            train_cfg=dict(by_epoch=False, max_iters=max_iters),
            optim_wrapper=dict(optimizer=dict(type="AdamW", lr=1e-3, weight_decay=0.1)),
            default_hooks=dict(
                logger=dict(type="LoggerHook", interval=1, log_metric_by_epoch=False),
                checkpoint=dict(type="CheckpointHook", interval=max_iters, by_epoch=False),
            ),
            log_processor=dict(by_epoch=False),
            experiment_name=uuid.uuid4().hex,
        )
        return Runner(model=model, **{**defaults, **settings})

    return make


@pytest.fixture
def read_log(tmp_path: Path) -> Callable[[], str]:
    """Gives what all Runners of the test have logged."""
    return lambda: log_of(tmp_path / "work")


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    return write_scenes(tmp_path / "scenes")


@pytest.fixture
def coco_root(tmp_path: Path) -> Path:
    return write_coco(tmp_path / "shapes")


@pytest.fixture
def segmentation_config(tmp_path: Path, data_root: Path) -> Config:
    return small_configs.segmentation_config(data_root, tmp_path / "work")


@pytest.fixture
def detection_config(tmp_path: Path, coco_root: Path) -> Config:
    return small_configs.detection_config(coco_root, tmp_path / "work")


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The option that has the commands train on photos."""
    return f"data_root={write_photos(tmp_path_factory.mktemp('photos') / 'data')}"


@pytest.fixture
def folders_root(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "classes")


@pytest.fixture
def classification_config(tmp_path: Path, folders_root: Path) -> Config:
    needs("mmpretrain")
    return small_configs.classification_config(folders_root, tmp_path / "work")
