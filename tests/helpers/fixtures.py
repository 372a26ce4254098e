"""A small model under mmengine's Runner, and small data sets under a segmentation and a detection config."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.model import BaseModel
from mmengine.runner import Runner
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader

from apla_mm.models import APLAViT
from apla_mm.options.shared_options import apply_shared_options

CONFIG = Path(__file__).parents[2] / "configs/seg/apla_vitb_custom.py"
DETECTION_CONFIG = Path(__file__).parents[2] / "configs/det/apla_vitb_custom.py"


class TinyClassifier(BaseModel):
    """Two blocks of a ViT, a linear head, and a layer that nothing uses."""

    def __init__(self, **backbone: Any) -> None:
        super().__init__()
        self.backbone = APLAViT(
            "vit_tiny_patch16_224",
            pretrained=False,
            img_size=32,
            model_kwargs=dict(depth=2, embed_dim=32, num_heads=2),
            **backbone,
        )
        self.head = nn.Linear(32, 3)
        self.idle = nn.Linear(2, 2).requires_grad_(False)

    def forward(self, inputs: Tensor, labels: Tensor, mode: str = "tensor") -> Any:
        logits = self.head(self.backbone(inputs)[-1].mean((2, 3)))
        return dict(loss=F.cross_entropy(logits, labels)) if mode == "loss" else logits


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
    return lambda: "".join(path.read_text() for path in sorted((tmp_path / "work").glob("*/*.log")))


def _write_sample(root: Path, split: str, name: str) -> None:
    rng = np.random.default_rng(len(name))
    image = Image.fromarray(rng.integers(0, 255, (5, 6, 3), dtype=np.uint8)).resize((48, 40))
    labels = np.zeros((40, 48), np.uint8)
    labels[:, 24:], labels[0] = 1, 255
    for kind in ("images", "annotations"):
        (root / kind / split).mkdir(parents=True, exist_ok=True)
    image.save(root / "images" / split / f"{name}.jpg")
    Image.fromarray(labels).save(root / "annotations" / split / f"{name}.png")


@pytest.fixture(scope="session")
def make_data_set() -> Callable[[Path], Path]:
    """Writes a data set in ADE20K's layout, of two classes: three samples to train on and two to validate on.

    Images have 48 x 40 pixels; the left half is of class 0, the right one of class 1, the first row is ignored.
    """

    def make(root: Path) -> Path:
        for split, count in (("training", 3), ("validation", 2)):
            for i in range(count):
                _write_sample(root, split, f"scene_{i}")
        return root

    return make


@pytest.fixture(scope="session")
def make_segmentation_config() -> Callable[[Path, Path], Config]:
    """Gives configs/seg/apla_vitb_custom.py for such a data set, with a tiny ViT and one iteration."""

    def make(data_root: Path, work_dir: Path) -> Config:
        cfg = Config.fromfile(CONFIG)
        apply_shared_options(cfg, dict(data_root=str(data_root), classes=["left", "right"], crop_size=32))
        cfg.model.backbone.update(
            model_name="vit_tiny_patch16_224",
            model_kwargs=dict(depth=4, embed_dim=16, num_heads=2),
            out_indices=(0, 1, 2, 3),
            pretrained=False,
            apla=dict(r=4),
        )
        for head in (cfg.model.decode_head, *cfg.model.auxiliary_head):
            head.update(in_channels=16, channels=8)
        return _shorten(cfg, work_dir)

    return make


def _shorten(cfg: Config, work_dir: Path) -> Config:
    """Leaves one iteration, and nothing that writes much."""
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    cfg.default_hooks.pop("checkpoint")
    for key in ("tta_pipeline", "train_pipeline", "test_pipeline"):
        cfg.pop(key, None)  # unused, and mmengine formats the whole config thrice
    cfg.visualizer.vis_backends = []  # each would write the config once more
    cfg.work_dir, cfg.experiment_name = str(work_dir), uuid.uuid4().hex
    return cfg


@pytest.fixture(scope="session")
def make_detection_config() -> Callable[[Path, Path], Config]:
    """Gives configs/det/apla_vitb_custom.py for what make_coco_data_set writes, with a tiny ViT and one iteration."""

    def make(data_root: Path, work_dir: Path) -> Config:
        cfg = Config.fromfile(DETECTION_CONFIG)
        apply_shared_options(cfg, dict(data_root=str(data_root), classes=["square", "disc"], crop_size=64))
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.ann_file = f"{data_root}/annotations/instances_val.json"
        cfg.model.backbone.update(
            model_name="vit_tiny_patch16_224",
            model_kwargs=dict(depth=2, embed_dim=16, num_heads=2),
            pretrained=False,
            apla=dict(r=4),
            window_size=None,
            global_blocks=(),
        )
        cfg.model.neck.update(in_channels=16, out_channels=16)
        _narrow(cfg.model.rpn_head)
        _narrow(cfg.model.roi_head)
        cfg.randomness = dict(seed=0)
        return _shorten(cfg, work_dir)

    return make


def _narrow(part: Any) -> None:
    """Gives heads 16 channels."""
    for key, value in part.items():
        if isinstance(value, dict):
            _narrow(value)
        elif key.endswith("channels"):
            part[key] = 16


@pytest.fixture
def coco_root(tmp_path: Path, make_coco_data_set: Callable[[Path], Path]) -> Path:
    return make_coco_data_set(tmp_path / "shapes")


@pytest.fixture(scope="session")
def edit_json() -> Callable[[Path, Callable[[dict], object]], None]:
    """Changes an annotation file's content."""

    def edit(path: Path, change: Callable[[dict], object]) -> None:
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    return edit


@pytest.fixture
def detection_config(tmp_path: Path, coco_root: Path, make_detection_config: Callable[[Path, Path], Config]) -> Config:
    return make_detection_config(coco_root, tmp_path / "work")


@pytest.fixture
def data_root(tmp_path: Path, make_data_set: Callable[[Path], Path]) -> Path:
    return make_data_set(tmp_path / "scenes")


@pytest.fixture
def segmentation_config(
    tmp_path: Path, data_root: Path, make_segmentation_config: Callable[[Path, Path], Config]
) -> Config:
    return make_segmentation_config(data_root, tmp_path / "work")
