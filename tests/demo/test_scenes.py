"""The demo's scenes, data set, and pretrained weights."""

import json
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import timm
from helpers import ROOT
from mmengine.config import Config
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits

sys.path.insert(0, str(ROOT / "demo"))

import make_dataset
import scenes

CONFIG = ROOT / "configs/demo/_base_digits.py"
WEIGHTS = ROOT / "demo/vit_digits.safetensors"


@pytest.fixture(scope="module")
def pools() -> dict[str, scenes.Digits]:
    return scenes.digit_pools()


def as_bytes(digits: scenes.Digits) -> set[bytes]:
    return {image.tobytes() for image in digits.images}


def test_pools_are_disjoint_and_lose_no_digit(pools: dict[str, scenes.Digits]) -> None:
    contents = [as_bytes(digits) for digits in pools.values()]
    distinct = len(np.unique(load_digits().images, axis=0))
    assert sum(len(c) for c in contents) == len(set.union(*contents)) == distinct


def test_every_pool_has_all_classes(pools: dict[str, scenes.Digits]) -> None:
    for digits in pools.values():
        assert set(digits.labels) == set(range(10))


def test_pools_keep_each_digit_with_its_label(pools: dict[str, scenes.Digits]) -> None:
    data = load_digits()
    label_of = {
        (image / 16).astype(np.float32).tobytes(): label for image, label in zip(data.images, data.target, strict=True)
    }
    for digits in pools.values():
        for image, label in zip(digits.images, digits.labels, strict=True):
            assert label_of[image.tobytes()] == label


def test_scene_depends_on_the_seed_alone(pools: dict[str, scenes.Digits]) -> None:
    one, again, other = (scenes.make_scene(np.random.default_rng(seed), pools["train"]) for seed in (3, 3, 4))
    assert np.array_equal(one.image, again.image) and np.array_equal(one.mask, again.mask)
    assert (one.members, one.centres) == (again.members, again.centres)
    assert not np.array_equal(one.image, other.image)


def test_scene_marks_the_strokes_of_its_digits(pools: dict[str, scenes.Digits]) -> None:
    sevens = pools["val"].labels == 7
    only_sevens = scenes.Digits(pools["val"].images[sevens], pools["val"].labels[sevens])
    scene = scenes.make_scene(np.random.default_rng(0), only_sevens, count=3)
    image, mask = scene.image, scene.mask
    assert len(scene.members) == len(scene.centres) == 3
    assert image.shape == (96, 96, 3) and image.dtype == np.uint8
    assert mask.shape == (96, 96) and mask.dtype == np.uint8
    assert set(np.unique(mask)) == {0, 8}
    assert 0.02 < (mask > 0).mean() < 0.5
    assert image[mask > 0].mean() > image[mask == 0].mean() + 20  # strokes are painted where the labels are
    for x, y in scene.centres:
        assert mask[int(y) - 12 : int(y) + 12, int(x) - 12 : int(x) + 12].any()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(make_dataset, "SPLITS", {"training": ("train", 3), "validation": ("val", 2)})
        make_dataset.make_dataset(root)
    return root


def test_dataset_has_the_layout_that_the_config_reads(dataset: Path) -> None:
    cfg = Config.fromfile(CONFIG)
    for loader, names in (
        (cfg.train_dataloader, ["train_0000", "train_0001", "train_0002"]),
        (cfg.val_dataloader, ["val_0000", "val_0001"]),
    ):
        for folder in loader.dataset.data_prefix.values():
            assert sorted(path.name for path in (dataset / folder).iterdir()) == [f"{name}.png" for name in names]


def test_files_hold_the_scenes(dataset: Path, pools: dict[str, scenes.Digits]) -> None:
    scene = scenes.make_scene(np.random.default_rng([0, 0, 1]), pools["train"])
    stored = cv2.imread(str(dataset / "images/training/train_0001.png"))
    labels = cv2.imread(str(dataset / "annotations/training/train_0001.png"), cv2.IMREAD_UNCHANGED)
    assert np.array_equal(cv2.cvtColor(stored, cv2.COLOR_RGB2BGR), scene.image)
    assert labels.dtype == np.uint8 and np.array_equal(labels, scene.mask)


def test_scenes_of_another_time_go_and_other_files_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "images/training"
    folder.mkdir(parents=True)
    for name in ("train_0100.png", "mine.png"):
        (folder / name).touch()
    monkeypatch.setattr(make_dataset, "SPLITS", {"training": ("train", 1)})
    make_dataset.make_dataset(tmp_path)
    assert sorted(path.name for path in folder.iterdir()) == ["mine.png", "train_0000.png"]


def test_config_knows_the_scenes_classes() -> None:
    cfg = Config.fromfile(CONFIG)
    assert tuple(cfg.metainfo.classes) == scenes.CLASSES
    assert cfg.model.decode_head.num_classes == len(scenes.CLASSES) == len(cfg.metainfo.palette)


def test_weights_fit_the_configs_backbone_strictly() -> None:
    backbone = Config.fromfile(CONFIG).model.backbone
    model = timm.create_model(
        backbone.model_name, img_size=backbone.img_size, num_classes=0, **backbone.model_kwargs.to_dict()
    )
    model.load_state_dict(load_file(WEIGHTS), strict=True)


def test_weights_say_where_they_come_from() -> None:
    with safe_open(WEIGHTS, "pt") as file:
        metadata = file.metadata()
    assert metadata["command"].startswith("python demo/pretrain.py")
    assert json.loads(metadata["accuracy"]) > 0.5


@pytest.mark.parametrize("method", ["head", "apla", "full"])
def test_methods_differ_in_the_backbone_alone(method: str) -> None:
    base, cfg = Config.fromfile(CONFIG), Config.fromfile(CONFIG.with_name(f"digits_{method}.py"))
    for key in ("apla", "frozen"):
        cfg.model.backbone.pop(key, None)
    rates = cfg.optim_wrapper.pop("paramwise_cfg", dict(part_lr={})).pop("part_lr")
    assert list(rates) == ([] if method == "head" else ["backbone"])
    assert cfg.to_dict() == base.to_dict()
