"""Whole models, exported and run, against what mmseg and mmdet predict of the same files."""

import argparse
import copy
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.optional import needs
from helpers.small_configs import shrink
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from apla_mm.commands.export import parse_args
from apla_mm.export.check_images import generate_image
from apla_mm.export.command import run_export
from apla_mm.export.export import ExportError, export_model
from apla_mm.export.load import exported_module
from apla_mm.export.onnx_file import OnnxModel, read_metadata
from apla_mm.export.reference import read_image
from apla_mm.options.shared_options import apply_shared_options

pytestmark = pytest.mark.slow

for package in ("onnx", "onnxruntime", "mmdet"):
    needs(package)

SIZE = (80, 111)


def small(name: str, folder: Path) -> tuple[Config, Path]:
    """A config of its small size, and a checkpoint of random weights that do not give one label alone."""
    cfg = Config.fromfile(next(ROOT.glob(f"configs/*/{name}*.py")))
    shrink(cfg)
    if cfg.default_scope == "mmseg":  # images are as high as a window, and wider
        apply_shared_options(cfg, dict(crop_size=cfg.model.data_preprocessor.size[0]))
    cfg.test_dataloader.dataset.pipeline[1].scale = (128, 64) if cfg.default_scope == "mmseg" else (64, 64)
    if cfg.model.type == "MaskRCNN":
        cfg.model.test_cfg.rpn.update(nms_pre=40, max_per_img=40)
    init_default_scope(cfg.default_scope)
    torch.manual_seed(0)
    model = MODELS.build(copy.deepcopy(cfg.model))
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=0.1 if cfg.default_scope == "mmseg" else 0.03)
        elif name.endswith("gamma"):
            nn.init.ones_(parameter)  # LayerScale's 1e-5 would leave the blocks out
        if name == "panoptic_head.cls_embed.weight":
            nn.init.normal_(parameter, std=1)  # classes are sure
    torch.save(dict(state_dict=model.state_dict(), meta={}), folder / "model.pth")
    return cfg, folder / "model.pth"


@pytest.fixture
def images(tmp_path: Path) -> list[Path]:
    sizes = (SIZE, (96, 70))
    return [generate_image(tmp_path / f"{i}.png", size, seed=i) for i, size in enumerate(sizes)]


def stock(cfg: Config, checkpoint: Path, image: Path) -> Any:
    """What mmseg's or mmdet's own inference gives."""
    config = Config(dict(cfg.to_dict(), test_pipeline=cfg.test_dataloader.dataset.pipeline))
    if cfg.default_scope == "mmseg":
        apis: Any = needs("mmseg.apis")
        model = apis.init_model(config, str(checkpoint), device="cpu")
        return apis.inference_model(model, str(image)).pred_sem_seg.data[0].numpy()
    apis = needs("mmdet.apis")
    model = apis.init_detector(config, str(checkpoint), device="cpu")
    sample = apis.inference_detector(model, str(image))
    return (
        sample.pred_panoptic_seg.sem_seg[0].numpy() if "pred_panoptic_seg" in sample else sample.pred_instances.numpy()
    )


@pytest.mark.parametrize(
    ("name", "size", "free"),
    [
        ("linear_dinov2-b14", None, ["batch", "height", "width"]),
        ("setr-pup_vit-b16_full", None, ["batch", "height", "width"]),
        ("eomt_dinov2-l14_apla_8xb2-40k", None, ["batch", "height", "width"]),
        ("segformer_mit-b0", SIZE, ["batch"]),
    ],
)
def test_segmentors(name: str, size: Any, free: list[str], tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small(name, tmp_path)
    exported = export_model(cfg, checkpoint, tmp_path / "model.onnx", images=images, size=size, name=name)
    assert exported.free == free, exported.notes
    assert exported.comparison.difference < 1e-4
    run = OnnxModel(exported.path)
    for image in images if "height" in free else images[:1]:
        expected = stock(cfg, checkpoint, image)
        labels = run(read_image(image)[None])["labels"][0]
        assert labels.shape == expected.shape and len(np.unique(expected)) > 1
        assert (labels == expected).mean() > 0.999
    assert read_metadata(exported.path)["config"] == name
    assert len(read_metadata(exported.path)["classes"]) == 150


def test_images_smaller_than_a_window_are_refused(tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small("linear_dinov2-b14", tmp_path)
    crop = cfg.model.test_cfg.crop_size[0]
    exported = export_model(cfg, checkpoint, tmp_path / "model.onnx", images=images)
    assert exported.free == ["batch", "height", "width"]
    assert "smaller than a window" in exported.notes[-1]
    photo = generate_image(tmp_path / "panorama.png", (40, 200), seed=7)
    with pytest.raises(Exception, match="ONNXRuntimeError"):
        OnnxModel(exported.path)(read_image(photo)[None])
    alone = export_model(cfg, checkpoint, tmp_path / "alone.onnx", images=[photo], size=(40, 200))
    assert alone.comparison.difference < 1e-4 and round(40 * 128 / 200) < crop
    assert (OnnxModel(alone.path)(read_image(photo)[None])["labels"][0] == stock(cfg, checkpoint, photo)).mean() > 0.999


@pytest.mark.parametrize(
    "name", ["eomt_dinov2-l14_apla_8xb2-90k_coco-644", "mask-rcnn_vit-b16_full", "mask-rcnn_swin-t_full", "dino_swin-t"]
)
def test_detectors(name: str, tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small(name, tmp_path)
    exported = export_model(cfg, checkpoint, tmp_path / "model.onnx", images=images[:1], size=SIZE)
    assert exported.free == (["batch"] if "eomt" in name else [])
    expected = stock(cfg, checkpoint, images[0])
    given = {key: value[0] for key, value in OnnxModel(exported.path)(read_image(images[0])[None]).items()}
    found = given["labels"] >= 0
    assert found.sum() == len(expected.scores) > 0
    ours, theirs = np.argsort(-given["scores"][found]), np.argsort(-expected.scores)
    np.testing.assert_allclose(given["scores"][found][ours], expected.scores[theirs], atol=1e-4)
    top = slice(0, 3)
    np.testing.assert_allclose(given["boxes"][found][ours][top], expected.bboxes[theirs][top], atol=0.01)
    if "masks" in expected:
        assert (given["masks"][found][ours][top] == expected.masks[theirs][top]).mean() > 0.999


def test_a_comparison_of_nothing_is_told(tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small("mask-rcnn_vit-b16_full", tmp_path)
    cfg.model.test_cfg.rcnn.score_thr = 0.99
    exported = export_model(cfg, checkpoint, tmp_path / "model.onnx", images=images[:1], size=SIZE)
    assert "finds no object" in exported.notes[-1]


def test_panoptic_maps(tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small("eomt_dinov2-l14_apla_8xb2-90k_coco-panoptic", tmp_path)
    cfg.model.test_cfg.update(object_mask_thr=0.4, iou_thr=0.3)
    exported = export_model(cfg, checkpoint, tmp_path / "model.onnx", images=images, size=SIZE)
    assert exported.free == ["batch"] and exported.comparison.difference < 1e-4 and exported.comparison.equal == 1
    expected = stock(cfg, checkpoint, images[0])
    segments = OnnxModel(exported.path)(read_image(images[0])[None])["segments"][0]
    found = np.unique(expected)
    assert found.max() >= 1000 and len(found) > 2
    assert (segments == expected).mean() > 0.999


@pytest.mark.parametrize(("kind", "suffix"), [("torchscript", ".pt"), ("torch", ".pt2")])
def test_files_of_torch(kind: str, suffix: str, tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small("linear_dinov2-b14", tmp_path)
    exported = export_model(cfg, checkpoint, tmp_path / f"model{suffix}", kind, images, SIZE)
    assert exported.free == ["batch"] and exported.comparison.difference < 1e-4


def test_a_file_that_differs_is_not_kept(tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small("linear_dinov2-b14", tmp_path)
    out = tmp_path / "out" / "model.onnx"
    with pytest.raises(ExportError, match="was not kept: any batch of one size was refused: largest difference"):
        export_model(cfg, checkpoint, out, images=images, size=SIZE, tolerance=0)
    assert not list(out.parent.iterdir())


def test_errors_without_a_message_are_a_reason_too(tmp_path: Path, images: list[Path]) -> None:
    cfg, checkpoint = small("linear_dinov2-b14", tmp_path)

    class Refuses(MODELS.get(f"mmseg.{cfg.model.decode_head.type}")):  # type: ignore[misc]
        def forward(self, inputs: Any) -> Any:
            raise AssertionError

    cfg.model.decode_head.type = Refuses
    tried = ("any batch and size", "any batch of one size", "one image of one size")
    each = "; ".join(f"{free} was refused: AssertionError" for free in tried)
    with pytest.raises(ExportError, match=f"was not kept: {each}\\. Larger"):
        export_model(cfg, checkpoint, tmp_path / "model.onnx", images=images)


def test_int8_and_a_process_without_torch(
    tmp_path: Path, images: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    small("linear_dinov2-b14", tmp_path)[0].dump(tmp_path / "config.py")
    out = tmp_path / "model.onnx"
    run_export(
        argparse.Namespace(
            config=str(tmp_path / "config.py"),
            checkpoint=str(tmp_path / "model.pth"),
            out=str(out),
            format="onnx",
            images=images,
            size=SIZE,
            tolerance=1e-4,
            int8=True,
            benchmark=True,
            score=0,
            cfg_options={},
            work_dir=str(tmp_path / "work"),
            launcher="none",
            local_rank=0,
        )
    )
    told = capsys.readouterr().out
    assert "takes images of any batch; fixed: size 80 x 111" in told
    differences = [float(text) for text in re.findall(r"largest difference (\S+),", told)]
    assert differences[0] < 1e-4 < differences[1] < 0.5, told
    rows = re.findall(r"^\| (\w+(?:, [\w ]+)?) +\|.*\| (\d+) \| \S+ \| \S+% \|$", told, re.MULTILINE)
    assert [name for name, _ in rows] == ["torch, as trained", "torch, merged", "onnxruntime", "onnxruntime, int8"]
    memory = [int(text) for _, text in rows]
    assert max(memory[2:]) < 0.7 * min(memory[:2]), memory  # no torch is loaded to run the files
    code = re.search(r"```python\n(.*?)```", (ROOT / "docs/export.md").read_text(), re.DOTALL)
    assert code is not None
    code_text = code[1].replace("photo.jpg", str(images[0])).replace("model.onnx", str(out))
    first = "import sys\nsys.modules['torch'] = None\n"
    result = subprocess.run([sys.executable, "-c", first + code_text], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "(80, 111)" in result.stdout


@pytest.mark.parametrize("package", ["onnx", "onnxruntime"])
def test_a_package_that_is_not_installed_is_named_before_anything_else(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ExportError, match=rf"not installed here: {package}\. .*'apla_mm\[mm,export\]'"):
        export_model(Config(), tmp_path / "none.pth", tmp_path / "model.onnx")


def test_what_cannot_be_exported_is_named(tmp_path: Path) -> None:
    cfg, checkpoint = small("linear_dinov2-b14", tmp_path)
    with pytest.raises(ExportError, match=r"must end in \.onnx"):
        export_model(cfg, checkpoint, tmp_path / "model.pth")
    state = torch.load(checkpoint, weights_only=True)
    state["state_dict"].pop("decode_head.conv_seg.weight")
    torch.save(state, checkpoint)
    with pytest.raises(ValueError, match=r"lacks 'decode_head\.conv_seg\.weight'"):
        export_model(cfg, checkpoint, tmp_path / "model.onnx")
    model = MODELS.build(cfg.model)
    cfg.test_dataloader.dataset.pipeline.insert(2, dict(type="Pad", size=(64, 64)))
    with pytest.raises(ValueError, match="cannot express .*Pad"):
        exported_module(cfg, model)
    cfg.test_dataloader.dataset.pipeline.pop(2)
    model.test_cfg.mode = "other"
    with pytest.raises(ValueError, match="mode='other' cannot be exported"):
        exported_module(cfg, model)
    cfg = Config.fromfile(next(ROOT.glob("configs/det/retinanet*.py")))
    shrink(cfg)
    init_default_scope("mmdet")
    with pytest.raises(ValueError, match="RetinaNet cannot be exported"):
        exported_module(cfg, MODELS.build(cfg.model))


@pytest.mark.parametrize("tolerance", [float("nan"), -1.0])
def test_a_tolerance_that_compares_nothing_is_refused(tolerance: float, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"^tolerance=.* must be 0 or more"):
        export_model(Config(), tmp_path / "none.pth", tmp_path / "m.onnx", tolerance=tolerance)


def test_a_place_that_cannot_be_written_is_refused_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "m.onnx").mkdir()
    for out, told in (
        ("file/m.onnx", r"'.*file/m\.onnx' cannot be written: '.*file': File exists"),
        ("m.onnx", "is a folder"),
    ):
        with pytest.raises(ExportError, match=told):
            export_model(Config(), tmp_path / "none.pth", tmp_path / out)


@pytest.mark.parametrize(
    "given", [["--tolerance", "nan"], ["--tolerance", "-1"], ["--size", "0x32"], ["--size", "32"], ["--size", "axb"]]
)
def test_numbers_that_mean_nothing_are_refused_by_the_command(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        parse_args([str(ROOT / "configs/seg/apla_vitb_custom.py"), "x.pth", "--out", "m.onnx", *given])
    told = capsys.readouterr().err
    assert "must be 0 or more" in told or "is no height and width" in told
