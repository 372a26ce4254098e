"""Configs of classification: what they build, on the meta device, and what agrees with what."""

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from helpers import ROOT
from helpers.optional import needs
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

needs("mmpretrain")
pytestmark = pytest.mark.slow

CONFIGS = sorted((ROOT / "configs/cls").glob("*.py"))
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
PAPER = "linear_dinov2-b14_paper_1xb64-10k_custom-224x224"


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def cfg(path: Path) -> Config:
    return Config.fromfile(path)


@pytest.fixture(scope="module")
def model(cfg: Config) -> Any:
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.device("meta"):
        settings = cfg.model.to_dict()
        settings["backbone"]["pretrained"], settings["head"]["num_classes"] = False, 5
        return MODELS.build(settings)


def test_stock_tools_find_the_package_and_both_hooks_run(cfg: Config) -> None:
    assert "apla_mm" in cfg.custom_imports["imports"] and cfg.custom_imports["allow_failed_imports"] is False
    assert cfg.default_scope == "mmpretrain"
    assert {hook.type for hook in cfg.custom_hooks} == {"DataCheckHook", "APLAHook"}


def test_dumped_config_reads_back_the_same(cfg: Config, tmp_path: Path) -> None:
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == cfg.to_dict()


def test_head_takes_what_the_backbone_gives(cfg: Config, model: Any) -> None:
    size = cfg.train_dataloader.dataset.pipeline[1].scale
    assert size == cfg.test_dataloader.dataset.pipeline[2].crop_size
    assert tuple(cfg.model.backbone.img_size) == (size, size)
    assert size % model.backbone.patch_size[0] == 0
    assert model(torch.empty(2, 3, size, size, device="meta")).shape == (2, 5)
    assert model.backbone.embed_dims == cfg.model.head.in_channels


def test_what_trains_is_what_the_config_says(cfg: Config, model: Any) -> None:
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    backbone = {name for name in trained if name.startswith("backbone.")}
    assert trained - backbone == {"head.fc.weight", "head.fc.bias"}
    assert len(backbone) == 2 * 12 and all(".attn.proj." in name for name in backbone)
    shapes = {tuple(p.shape) for name, p in model.named_parameters() if name in backbone}
    r, width = cfg.model.backbone.apla.r, model.backbone.vit.embed_dim
    assert shapes == {(r, width), (r,)}


def test_pretrained_weights_exist_and_images_are_normalised_for_them(cfg: Config) -> None:
    name = cfg.model.backbone.model_name
    assert timm.is_model_pretrained(name)
    weights = timm.get_pretrained_cfg(name)
    assert cfg.model.data_preprocessor.mean == pytest.approx([255 * value for value in weights.mean])
    assert cfg.model.data_preprocessor.std == pytest.approx([255 * value for value in weights.std])
    assert cfg.model.data_preprocessor.to_rgb is True
    assert cfg.test_dataloader.dataset.pipeline[1].interpolation == weights.interpolation == "bicubic"


def test_name_tells_batch_and_length(path: Path, cfg: Config) -> None:
    gpus, batch, thousands = map(int, re.search(r"_(\d+)xb(\d+)-(\d+)k_", path.stem).groups())
    assert gpus * cfg.train_dataloader.batch_size == gpus * batch == cfg.auto_scale_lr.base_batch_size
    assert cfg.train_cfg.max_iters == 1000 * thousands == cfg.param_scheduler[-1].end
    assert cfg.param_scheduler[-1].begin + cfg.param_scheduler[-1].T_max == cfg.train_cfg.max_iters


def test_the_papers_recipe() -> None:
    cfg = Config.fromfile(ROOT / f"configs/cls/{PAPER}.py")
    assert dict(cfg.optim_wrapper.optimizer) == dict(type="AdamW", lr=3e-5, weight_decay=1e-5)
    assert cfg.optim_wrapper.clip_grad == dict(max_norm=1.0) and "paramwise_cfg" not in cfg.optim_wrapper
    warm_up, cosine = cfg.param_scheduler
    assert (warm_up.type, warm_up.begin, warm_up.end) == ("LinearLR", 0, 500)
    assert (cosine.type, cosine.begin, cosine.eta_min) == ("CosineAnnealingLR", 500, 1e-6)
    assert cfg.model.backbone.apla == dict(r=8, seed=0) and cfg.model.backbone.output == "cls_token"
