"""Training on a folder and predicting, in a few lines, against what the commands do."""

import argparse
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from helpers.data_sets import edit_json, write_coco, write_photos
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from PIL import Image

import apla_mm
from apla_mm.api import training
from apla_mm.api.prediction import Prediction
from apla_mm.options.command_line import build_runner, load_config

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def small_vits(monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's ViT-Tiny has four blocks of 32 channels."""
    create = timm.create_model

    def small(name: str, **options: Any) -> Any:
        kwargs = dict(depth=4, embed_dim=32, num_heads=2) if name.startswith("vit_tiny") else {}
        return create(name, **{**options, **kwargs})

    monkeypatch.setattr(timm, "create_model", small)


def train(root: Path, task: str, work_dir: Path, **how: Any) -> Any:
    settings = dict(backbone="vit_tiny_patch16_224", pretrained=False, r=4, image_size=64, steps=2, batch_size=2)
    return apla_mm.train(root, task, work_dir=work_dir, workers=0, **{**settings, **how})


def test_a_segmentor_of_a_folder_and_its_delta_predict_what_the_test_command_does(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos")
    (root / "classes.txt").write_text("dark\nbright\n")
    trained = train(root, "seg", tmp_path / "run")
    assert trained.data.classes == ("dark", "bright") and 0 <= trained.scores["mIoU"] <= 100
    image = root / "images/validation/0_0.jpg"
    predictor = trained.load(device="cpu")
    found = predictor.predict(image)
    assert found.label_map is not None and found.label_map.shape == (64, 72) and found.classes == ("dark", "bright")
    for given in (np.asarray(Image.open(image)), Image.open(image)):
        again = predictor.predict(given)
        assert np.array_equal(again.label_map, found.label_map)
    cfg = load_config(
        argparse.Namespace(config=str(trained.config), cfg_options={}, work_dir=None, launcher="none", local_rank=0)
    )
    cfg.load_from, cfg.experiment_name, cfg.visualizer.name = str(trained.checkpoint), "test", "test"
    runner: Runner = build_runner(cfg, ("test_dataloader",))
    runner.load_or_resume()
    dataset = runner.test_dataloader.dataset
    place = next(i for i in range(len(dataset)) if dataset.get_data_info(i)["img_path"].endswith("0_0.jpg"))
    sample = dataset[place]
    batch = dict(inputs=[sample["inputs"]], data_samples=[sample["data_samples"]])
    with torch.no_grad(), DefaultScope.overwrite_default_scope("mmseg"):
        (expected,) = runner.model.eval().test_step(batch)
    assert np.array_equal(found.label_map, expected.pred_sem_seg.data[0].numpy())
    assert trained.delta is not None and trained.delta.stat().st_size < trained.checkpoint.stat().st_size
    of_delta = apla_mm.load(trained.delta, device="cpu").predict(image)
    assert np.array_equal(of_delta.label_map, found.label_map)
    drawn = found.draw()
    assert drawn.size == (72, 64) and found._repr_png_()[:4] == b"\x89PNG"
    assert "bright" in repr(found) or "dark" in repr(found)
    plot = trained.plot()
    assert len(plot.axes) == 2 and plot._repr_png_().startswith(b"\x89PNG")


def test_a_detector_of_a_folder_predicts_boxes_and_masks(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "shapes")
    trained = train(root, "det", tmp_path / "run", options={"model.test_cfg.rcnn.score_thr": 0.0})
    assert trained.data.classes == ("square", "disc") and "coco/bbox_mAP" in trained.scores
    found = trained.load(device="cpu").predict(root / "images/scene_4.jpg")
    assert found.label_map is None and found.boxes is not None and found.masks is not None
    assert len(found.boxes) == len(found.scores) == len(found.labels) == len(found.masks) > 0
    assert found.masks.shape[1:] == (48, 64) and (np.diff(found.scores) <= 0).all()
    assert found.draw(threshold=0.0).size == (64, 48)


def test_a_panoptic_model_gives_segments_and_a_classifier_scores(
    tmp_path: Path, classification_config: Any, folders_root: Path
) -> None:
    build_runner(classification_config).train()
    save = tmp_path / "classifier.pth"
    runner = build_runner(classification_config)
    meta = dict(cfg=classification_config.pretty_text, dataset_meta=dict(classes=("dark", "light", "red")))
    torch.save(dict(state_dict=runner.model.state_dict(), meta=meta), save)
    image = next((folders_root / "val").rglob("*.jpg"))
    found = apla_mm.load(save, device="cpu").predict(image)
    assert found.class_scores is not None and found.class_scores.sum() == pytest.approx(1, abs=1e-4)
    assert found.draw().size == Image.open(image).size and "dark" in repr(found)
    assert found.label_map is None and found.boxes is None

    ids = torch.tensor([[[0, 0, 1001], [2, 3, 1001]]])
    sample = dict(pred_panoptic_seg=SimpleNamespace(sem_seg=ids))
    panoptic = Prediction.of(np.zeros((2, 3, 3), np.uint8), AttributeDict(sample), ("disc", "square", "ground"))
    assert panoptic.label_map.tolist() == [[0, 0, 1], [2, -1, 1]] and panoptic.segments.tolist() == ids[0].tolist()
    assert panoptic.draw().size == (3, 2) and repr(panoptic).endswith("disc, square, ground")


class AttributeDict(dict):
    """As mmdet's samples: parts are attributes, and are in it."""

    def __getattr__(self, name: str) -> Any:
        return self[name]


def test_a_run_that_was_cut_off_goes_on_and_another_is_refused(tmp_path: Path) -> None:
    root = write_photos(tmp_path / "photos")
    first = train(root, "seg", tmp_path / "run", method="head")
    again = train(root, "seg", tmp_path / "run", method="head")
    assert again.scores == first.scores and first.delta is None
    with pytest.raises(FileExistsError, match="holds a run with other settings"):
        train(root, "seg", tmp_path / "run", method="head", steps=3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("task", ["seg", "det"])
def test_a_run_does_not_go_on_with_other_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, task: str) -> None:
    root = write_photos(tmp_path / "data") if task == "seg" else write_coco(tmp_path / "data")
    run = tmp_path / "run"
    monkeypatch.setattr(training, "_run", lambda path, folder, found: (path, found))  # what is before training
    training.find_data(root, task, run / "data")  # a first call that was cut off before there was a config
    assert (run / "data").exists() == (task == "seg")
    (config, found), again = train(root, task, run), train(root, task, run)
    assert config == run / "data/config.py" and (config, found) == again
    assert sorted(contents(run)) == [f"data/{name}" for name in ("config.py", "digest.txt", *lists(task))]
    before = contents(run)
    if task == "seg":
        shutil.copy(root / "images/training/0_0.jpg", root / "images/training/new.jpg")
        shutil.copy(root / "annotations/training/0_0.png", root / "annotations/training/new.png")
    else:
        edit_json(root / "annotations/instances_train.json", lambda content: content["annotations"].pop())
    for how in ({}, dict(steps=3)):
        with pytest.raises(FileExistsError, match="the data .* have changed since that run: name another work_dir"):
            train(root, task, run, **how)
        assert contents(run) == before
    train(root, task, tmp_path / "other")
    assert contents(tmp_path / "other")["data/digest.txt"] != before["data/digest.txt"]


def lists(task: str) -> tuple[str, ...]:
    return ("train.json", "val.json") if task == "seg" else ()


@pytest.mark.parametrize(
    ("how", "expected"),
    [
        (dict(task="pose"), "task='pose' must be 'seg'"),
        (dict(image_size=100), "image_size=100 is not made of patches of 16 pixels: take 96 or 112"),
        (dict(backbone="vit_tiny_patch16_244"), "has no model 'vit_tiny_patch16_244'"),
        (dict(method="apple:r=4"), "there is no method 'apple'"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, how: dict[str, Any], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        train(write_photos(tmp_path / "photos"), how.pop("task", "seg"), tmp_path / "run", **how)
    assert not (tmp_path / "run").exists()
