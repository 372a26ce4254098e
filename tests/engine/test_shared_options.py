import argparse
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import PARAM_SCHEDULERS
from torch import nn
from torch.optim import SGD

from apla_mm.engine.command_line import add_common_arguments, load_config
from apla_mm.engine.shared_options import apply_shared_options

CONFIGS = sorted((Path(__file__).parents[2] / "configs/seg").glob("*.py"))
CUSTOM = Path(__file__).parents[2] / "configs/seg/apla_vitb_custom.py"
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def cfg(request: pytest.FixtureRequest) -> Config:
    return Config.fromfile(request.param)


@pytest.fixture
def custom() -> Config:
    return Config.fromfile(CUSTOM)


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    """Paths such as model.decode_head.channels, with the values there."""
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        return {path: node}
    return {k: v for key, child in children for k, v in leaves(child, f"{path}.{key}".lstrip(".")).items()}


def changes(cfg: Config, options: dict[str, Any]) -> set[str]:
    """What the options change, apart from the order; numbers in paths become N."""
    before = leaves(copy.deepcopy(cfg.to_dict()))
    apply_shared_options(cfg, options)
    after = leaves(cfg.to_dict())
    changed = {key for key in before.keys() | after.keys() if before.get(key, None) != after.get(key, None)}
    return {".".join("N" if step.isdecimal() else step for step in key.split(".")) for key in changed}


def pipelines(cfg: Config) -> Iterator[list[dict]]:
    return (cfg[loader].dataset.pipeline for loader in LOADERS)


def test_no_shared_option_changes_nothing(cfg: Config) -> None:
    assert changes(cfg, {}) == set()


def test_data_root_reaches_every_data_set_and_nothing_else(cfg: Config) -> None:
    assert changes(cfg, dict(data_root="/elsewhere")) == {f"{loader}.dataset.data_root" for loader in LOADERS}
    assert [cfg[loader].dataset.data_root for loader in LOADERS] == ["/elsewhere"] * 3


def test_data_root_reaches_data_sets_inside_others(custom: Config) -> None:
    inner = custom.train_dataloader.dataset
    custom.train_dataloader.dataset = dict(type="MultiImageMixDataset", pipeline=[], dataset=inner)
    custom.val_dataloader.dataset = dict(type="ConcatDataset", datasets=[copy.deepcopy(inner), copy.deepcopy(inner)])
    apply_shared_options(custom, dict(data_root="/elsewhere"))
    assert custom.train_dataloader.dataset.dataset.data_root == "/elsewhere"
    assert "data_root" not in custom.train_dataloader.dataset
    assert [d.data_root for d in custom.val_dataloader.dataset.datasets] == ["/elsewhere"] * 2


@pytest.mark.parametrize("classes", [["wall", "sky", "tree"], ("wall", "sky"), "wall"])
def test_classes_reach_every_data_set_and_head_and_nothing_else(cfg: Config, classes: Any) -> None:
    names = (classes,) if isinstance(classes, str) else tuple(classes)
    changed = changes(cfg, dict(classes=classes))
    assert {key.split(".metainfo")[0] for key in changed} <= {
        *(f"{loader}.dataset" for loader in LOADERS),
        "model.decode_head.num_classes",
        "model.auxiliary_head.N.num_classes",
    }
    assert [tuple(cfg[loader].dataset.metainfo.classes) for loader in LOADERS] == [names] * 3
    heads = [cfg.model.decode_head, *cfg.model.auxiliary_head]
    assert len(heads) == 4 and {head.num_classes for head in heads} == {len(names)}


@pytest.mark.parametrize(
    ("crop_size", "size", "stride"),
    [(64, (64, 64), (42, 42)), ([96, 64], (96, 64), (64, 42)), ((256, 512), (256, 512), (170, 341))],
)
def test_crop_size_reaches_model_and_pipelines(cfg: Config, crop_size: Any, size: tuple, stride: tuple) -> None:
    apply_shared_options(cfg, dict(crop_size=crop_size))
    model = cfg.model
    assert tuple(model.data_preprocessor.size) == tuple(model.backbone.img_size) == size
    assert (tuple(model.test_cfg.crop_size), tuple(model.test_cfg.stride)) == (size, stride)
    transforms = [transform for pipeline in pipelines(cfg) for transform in pipeline]
    crops = [tuple(t["crop_size"]) for t in transforms if t["type"] == "RandomCrop"]
    scales = [tuple(t["scale"]) for t in transforms if t["type"] in ("RandomResize", "Resize")]
    assert crops == [size] and scales == [(4 * size[0], size[0])] * 3  # (longest, shortest) side


def test_crop_size_changes_nothing_else(cfg: Config) -> None:
    assert changes(cfg, dict(crop_size=64)) == {
        "model.data_preprocessor.size",
        "model.backbone.img_size",
        "model.test_cfg.crop_size",
        "model.test_cfg.stride",
        "train_dataloader.dataset.pipeline.N.crop_size",
        *(f"{loader}.dataset.pipeline.N.scale" for loader in LOADERS),
    }


def test_crop_size_of_the_config_itself_changes_nothing(cfg: Config) -> None:
    size = tuple(cfg.model.data_preprocessor.size)
    assert changes(cfg, dict(crop_size=size)) <= {f"{loader}.dataset.pipeline.N.scale" for loader in LOADERS}


def test_resizing_without_the_aspect_ratio_gets_width_and_height(custom: Config) -> None:
    custom.train_dataloader.dataset.pipeline = [dict(type="Resize", scale=(512, 512), keep_ratio=False)]
    apply_shared_options(custom, dict(crop_size=(96, 64)))
    assert tuple(custom.train_dataloader.dataset.pipeline[0].scale) == (64, 96)


def test_max_iters_scales_schedule_and_intervals(cfg: Config) -> None:
    changed = changes(cfg, dict(max_iters=16000))
    warmup, decay = cfg.param_scheduler
    assert (warmup.begin, warmup.end, decay.begin, decay.end) == (0, 150, 150, 16000)
    assert (cfg.train_cfg.max_iters, cfg.train_cfg.val_interval) == (16000, 1600)
    assert (cfg.default_hooks.checkpoint.interval, cfg.default_hooks.logger.interval) == (1600, 5)
    assert changed == {
        "train_cfg.max_iters",
        "train_cfg.val_interval",
        "param_scheduler.N.begin",
        "param_scheduler.N.end",
        "default_hooks.checkpoint.interval",
        "default_hooks.logger.interval",
    }


@pytest.mark.parametrize("max_iters", [1, 2, 4, 50, 51, 54, 61, 1000, 320000])
def test_schedule_can_be_built_and_ends_with_training_at_any_length(custom: Config, max_iters: int) -> None:
    apply_shared_options(custom, dict(max_iters=max_iters))
    optimizer = SGD(nn.Linear(1, 1).parameters(), lr=1.0)
    schedulers = [
        PARAM_SCHEDULERS.build(dict(s), default_args=dict(optimizer=optimizer)) for s in custom.param_scheduler
    ]
    assert max(scheduler.end for scheduler in schedulers) == max(max_iters, 4)  # two parts of at least two steps
    assert min(scheduler.begin for scheduler in schedulers) == 0
    assert 1 <= custom.train_cfg.val_interval <= max_iters
    assert 1 <= custom.default_hooks.checkpoint.interval <= max_iters


@pytest.mark.parametrize(
    ("key", "value", "shared", "elsewhere"),
    [
        ("train_cfg.val_interval", 7, "max_iters=1600", ("train_cfg.max_iters", 1600)),
        ("default_hooks.checkpoint.interval", 7, "max_iters=1600", ("train_cfg.max_iters", 1600)),
        ("param_scheduler.0.end", 7, "max_iters=1600", ("param_scheduler.1.end", 1600)),
        ("model.test_cfg.stride", (16, 16), "crop_size=64", ("model.test_cfg.crop_size", (64, 64))),
        ("val_dataloader.dataset.data_root", "/b", "data_root=/a", ("train_dataloader.dataset.data_root", "/a")),
    ],
)
def test_option_given_for_one_place_is_not_overridden_by_a_shared_one(
    key: str, value: Any, shared: str, elsewhere: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # load_config sets both: put them back afterwards
    monkeypatch.setenv("LOCAL_RANK", "0")
    parser = argparse.ArgumentParser()
    parser.add_argument("config")
    add_common_arguments(parser)
    single = f"{key}={value}".replace(" ", "")
    for options in ([single, shared], [shared, single]):
        cfg = load_config(parser.parse_args([str(CUSTOM), "--cfg-options", *options]))
        found = leaves(cfg.to_dict())
        assert (found[key], found[elsewhere[0]]) == (value, elsewhere[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(classes=[0, 1]), "classes="),
        (dict(classes=3), "classes="),
        (dict(classes=["cat", None]), "classes="),
        (dict(classes=["cat", "dog", "cat"]), "holds a name twice"),
        (dict(classes=[]), "classes="),
        (dict(crop_size=0), "crop_size=0 must be"),
        (dict(crop_size=-64), "crop_size=-64 must be"),
        (dict(crop_size=64.5), r"crop_size=64\.5 must be"),
        (dict(crop_size=(64, 64, 3)), "crop_size="),
        (dict(crop_size=(64, 32.5)), "crop_size="),
        (dict(crop_size="large"), "crop_size='large' must be"),
        (dict(max_iters=0), "max_iters=0 must be"),
        (dict(max_iters=-5), "max_iters=-5 must be"),
        (dict(max_iters=1.5), r"max_iters=1\.5 must be"),
        (dict(max_iters="many"), "max_iters='many' must be"),
        (dict(data_root=["/data/a", "b"]), "data_root="),
    ],
)
def test_value_of_the_wrong_kind_is_an_error_that_names_the_option(
    custom: Config, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_shared_options(custom, options)


def test_max_iters_of_a_config_that_trains_by_epochs_is_an_error(custom: Config) -> None:
    custom.train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=10)
    with pytest.raises(ValueError, match="for a config that trains by iterations"):
        apply_shared_options(custom, dict(max_iters=10))
