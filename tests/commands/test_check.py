"""apla-mm check: a config that will train, and ten that will not, each named."""

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.data_sets import write_scenes
from helpers.small_configs import segmentation_config
from mmengine.config import Config

from apla_mm.__main__ import main
from apla_mm.commands.check import _rehearse, _try
from apla_mm.config_files import find_config
from apla_mm.options.command_line import add_common_arguments, load_config

pytestmark = pytest.mark.slow


@pytest.fixture
def cfg(tmp_path: Path) -> Config:
    cfg = segmentation_config(write_scenes(tmp_path / "scenes"), tmp_path / "work")
    cfg.train_cfg.update(max_iters=40, val_interval=20)
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=20, max_keep_ckpts=2)
    return cfg


def check(cfg: Config, tmp_path: Path, *options: str) -> None:
    cfg.dump(tmp_path / "config.py")
    main(["check", str(tmp_path / "config.py"), *options])


def test_ready_with_what_it_will_take_and_nothing_left_behind(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check(cfg, tmp_path)
    said = capsys.readouterr().out
    assert said.endswith("\nReady.\n")
    for line in ("trains ", "memory ", "step ", "validation ", "the run ", "disk ", "versions "):
        assert f"\n{line}" in said
    assert ", 40 of them" in said and "2 images, 2 times" in said
    assert not (tmp_path / "work").exists()


def test_a_run_of_one_step_is_ready_though_its_time_is_not_known(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cfg.train_cfg.update(max_iters=1, val_interval=1)
    check(cfg, tmp_path)
    said = capsys.readouterr().out
    assert said.endswith("\nReady.\n") and "nan" not in said
    assert "\nstep       not measured, as there is one alone, 1 of them\n" in said


def test_what_is_advised_where_memory_is_short_reaches_the_config() -> None:
    def step() -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    problems: list[str] = []
    _try(problems, "run", step)
    assert "(CUDA out of memory.)" in problems[0] and "train_dataloader.batch_size" in problems[0]
    advised = re.findall(r"[\w.]+=[\w:=,]+", problems[0])
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    add_common_arguments(parser)
    config = str(find_config("apla_mm::seg/apla_vitb_ade.py"))
    cfg = load_config(parser.parse_args([config, "--cfg-options", *advised]))
    assert cfg.model.backbone.apla.recompute == "block"
    assert cfg.default_hooks.lean_heads.recompute is True
    assert cfg.train_dataloader.batch_size


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:99])


def weights_of_another(cfg: Config, tmp_path: Path) -> None:
    torch.save(dict(cls_token=torch.zeros(1, 1, 99)), tmp_path / "weights.pth")
    cfg.model.backbone.pretrained = str(tmp_path / "weights.pth")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda cfg, root: cfg.train_dataloader.dataset.update(data_root="/nowhere"), "data: .*'/nowhere/images/train"),
        (lambda cfg, root: truncated(root / "images/training/scene_1.jpg"), "scene_1.jpg' cannot be read"),
        (lambda cfg, root: (root / "annotations/training/scene_2.png").unlink(), "scene_2.png"),
        (lambda cfg, root: cfg.model.decode_head.update(num_classes=3), "settings: model.decode_head.num_classes"),
        (lambda cfg, root: weights_of_another(cfg, root.parent), "weights.pth' does not fit"),
        (lambda cfg, root: cfg.model.backbone.update(pretrained="/no/weights.pth"), "/no/weights.pth"),
        (lambda cfg, root: cfg.model.backbone.apla.update(r=999), "r=999"),
        (lambda cfg, root: cfg.model.backbone.update(model_name="vit_tiny_patch16_244"), "vit_tiny_patch16_244"),
        (
            lambda cfg, root: cfg.optim_wrapper.optimizer.update(type="AdamWW"),
            "there is no optimizer 'AdamWW'; .*AdamW",
        ),
        (
            lambda cfg, root: cfg.optim_wrapper.optimizer.update(lr=-1.0),
            "settings: optim_wrapper.optimizer.lr: AdamW does not take -1.0: Invalid",
        ),
    ],
)
def test_what_will_not_train_is_named(
    cfg: Config,
    tmp_path: Path,
    change: Callable[[Any, Path], object],
    expected: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(cfg, tmp_path / "scenes")
    with pytest.raises(SystemExit) as ended:
        check(cfg, tmp_path)
    _, _, listed = capsys.readouterr().out.partition("\nNot ready: ")
    assert ended.value.code == 1 and listed
    assert [line for line in listed.splitlines()[1:] if line.startswith("  - ")]
    assert re.search(expected, listed), listed


def test_several_are_listed_at_once(cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cfg.train_dataloader.dataset.data_root = cfg.val_dataloader.dataset.data_root = "/nowhere"
    cfg.model.decode_head.num_classes = 3
    with pytest.raises(SystemExit):
        check(cfg, tmp_path)
    assert "Not ready: 3 to mend" in capsys.readouterr().out


def test_no_room_for_checkpoints_is_named(
    cfg: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), dict(free=1000)))
    with pytest.raises(SystemExit):
        check(cfg, tmp_path)
    assert "disk: checkpoints take" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("hook", "kept"),
    [
        (dict(type="CheckpointHook", by_epoch=True, interval=1), 12),
        (dict(type="CheckpointHook", by_epoch=True, interval=5), 3),
        (dict(type="CheckpointHook", by_epoch=True, interval=1, max_keep_ckpts=2, save_best="mIoU"), 3),
        (dict(type="CheckpointHook", by_epoch=True, interval=-1), 1),
        (dict(type="CheckpointHook", by_epoch=False, interval=4), 6),
    ],
)
def test_epochs_are_epochs(hook: dict[str, Any], kept: int, cfg: Config) -> None:
    cfg.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=4)
    cfg.train_dataloader.update(batch_size=2, sampler=dict(type="DefaultSampler", shuffle=True))
    cfg.default_hooks.checkpoint, cfg.param_scheduler = hook, []
    costs = _rehearse(cfg, 1)
    assert costs.steps == 24 and costs.validations == 3 and costs.checkpoints == kept
