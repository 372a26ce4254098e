"""Tools that take deltas in a checkpoint's place, against the whole checkpoints of runs that write no deltas."""

import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import ROOT
from helpers.comparisons import assert_same
from helpers.data_sets import write_coco, write_photos
from helpers.small_configs import narrow
from helpers.tools import call_tool
from mmdet.apis import DetInferencer
from mmengine.config import Config
from mmengine.registry import DefaultScope
from mmseg.apis import MMSegInferencer, inference_model, init_model
from PIL import Image

from apla_mm.delta import DeltaError
from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.options.shared_options import apply_shared_options

pytestmark = pytest.mark.slow

DELTA, WHOLE = "iter_2.delta.safetensors", "iter_2.pth"
CONFIGS = {
    "APLAViT": "seg/apla_vitb_custom.py",
    "VisionTransformer": "seg/setr-pup_mmseg-vit-b16_apla_8xb2-160k_ade20k-512x512.py",
    "SwinTransformer": "seg/upernet_swin-t_apla_8xb2-160k_ade20k-512x512.py",
    "detector": "det/apla_vitb_custom.py",
}
VIT = dict(depth=4, embed_dim=16, num_heads=2)
SMALL: dict[str, dict[str, Any]] = {
    "APLAViT": dict(model_kwargs=VIT, model_name="vit_tiny_patch16_224", out_indices=(0, 1, 2, 3), apla=dict(r=4)),
    "VisionTransformer": dict(embed_dims=16, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3), drop_path_rate=0.0),
    "SwinTransformer": dict(embed_dims=24, depths=(2, 2, 2, 2), drop_path_rate=0.0),
    "detector": dict(
        model_kwargs=VIT, model_name="vit_tiny_patch16_224", apla=dict(r=4), window_size=None, global_blocks=()
    ),
}


def small_config(kind: str, root: Path, folder: Path, deltas: bool) -> Path:
    """Writes the config of a small model that trains for two steps."""
    cfg = Config.fromfile(ROOT / "configs" / CONFIGS[kind])
    detection = kind == "detector"
    data = root / ("coco" if detection else "scenes")
    names = ["square", "disc"] if detection else ["dark", "bright"]
    shared = dict(crop_size=64, max_iters=2) | (
        dict(data_root=str(data), classes=names) if kind in ("APLAViT", "detector") else {}
    )
    apply_shared_options(cfg, shared)
    backbone = cfg.model.backbone
    backbone.update(SMALL[kind])
    backbone["pretrained" if kind in ("APLAViT", "detector") else "init_cfg"] = (
        False if "model_kwargs" in backbone else None
    )
    if detection:
        for evaluator in (cfg.val_evaluator, cfg.test_evaluator):
            evaluator.ann_file = f"{data}/annotations/instances_val.json"
        cfg.model.test_cfg.rcnn.score_thr = 0.0  # two steps are sure of nothing
        cfg.model.neck.update(in_channels=16, out_channels=16)
        for part in (cfg.model.rpn_head, cfg.model.roi_head):
            narrow(part)
    else:
        width = backbone.get("embed_dims", 16)
        for head in (cfg.model.decode_head, *as_list(cfg.model.auxiliary_head)):
            several = isinstance(head.in_channels, (list, tuple))
            head.in_channels = [width * 2**i for i in range(4)] if several else width
            if kind == "SwinTransformer" and not several:
                head.in_channels = width * 4
            head.channels, head.num_classes = 16, 2
    for split in ("train", "val", "test"):
        loader = cfg[f"{split}_dataloader"]
        loader.update(num_workers=0, persistent_workers=False)
        loader.batch_size = 2 if split == "train" else 1
        if not detection:
            loader.dataset.update(type="BaseSegDataset", data_root=str(data), metainfo=dict(classes=names))
            for step in loader.dataset.pipeline:
                step.pop("reduce_zero_label", None)  # ADE20K's
    cfg.train_cfg.val_interval = 2
    cfg.default_hooks.checkpoint.update(interval=2)
    cfg.custom_hooks += [dict(type="EMAHook", momentum=0.3), *([dict(type="DeltaHook")] if deltas else [])]
    cfg.optim_wrapper.optimizer.lr = 3e-3
    cfg.randomness, cfg.work_dir = dict(seed=0), str(folder)
    cfg.visualizer.vis_backends = []
    for key in ("tta_pipeline", "train_pipeline", "test_pipeline"):
        cfg.pop(key, None)
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline  # inferencers read it
    folder.mkdir(parents=True)
    path = folder / "small.py"
    cfg.dump(path)
    return path


def as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def run(tool: str, *arguments: object) -> None:
    call_tool(ROOT / f"tools/{tool}.py", *arguments, "--cfg-options", f"experiment_name={uuid.uuid4().hex}")


class Runs:
    """Two runs of one config: `whole` wrote checkpoints, `delta` deltas too."""

    def __init__(self, kind: str, root: Path, folder: Path) -> None:
        self.kind, self.whole, self.delta = kind, folder / "whole", folder / "delta"
        for work in (self.whole, self.delta):
            run("train", small_config(kind, root, work, deltas=work == self.delta))
        self.config = self.whole / "small.py"

    def scores(self, checkpoint: Path, work_dir: Path) -> dict[str, float]:
        run("test", self.config, checkpoint, "--work-dir", work_dir)
        (path,) = (path for path in work_dir.glob("*/*.json"))
        return {k: v for k, v in json.loads(path.read_text()).items() if "time" not in k}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("data")
    write_photos(root / "scenes")
    write_coco(root / "coco")
    return root


@pytest.fixture(scope="module")
def make_runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Runs]]:
    made: dict[str, Runs] = {}

    def make(kind: str) -> Runs:
        if kind not in made:
            made[kind] = Runs(kind, data, tmp_path_factory.mktemp(kind))
        return made[kind]

    yield make


@pytest.mark.parametrize("kind", CONFIGS)
def test_test_scores_a_delta_as_the_whole_checkpoint(make_runs: Callable, kind: str, tmp_path: Path) -> None:
    runs = make_runs(kind)
    whole = read_checkpoint(runs.whole / WHOLE)["state_dict"]
    expected = runs.scores(runs.whole / WHOLE, tmp_path / "whole")
    assert expected and (kind == "detector" or expected["mIoU"] > 0)
    assert (runs.delta / DELTA).stat().st_size < (runs.whole / WHOLE).stat().st_size
    assert not list(runs.whole.glob("*.safetensors"))
    for name in (DELTA, WHOLE):
        assert_same(read_checkpoint(runs.delta / name)["state_dict"], whole)
        assert runs.scores(runs.delta / name, tmp_path / name) == expected


@pytest.fixture(scope="module")
def image(data: Path) -> Path:
    return data / "scenes/images/validation/0_1.jpg"


def test_init_model_takes_a_delta(make_runs: Callable, image: Path) -> None:
    runs = make_runs("VisionTransformer")
    logits = []
    for path in (runs.whole / WHOLE, runs.delta / DELTA):
        with DefaultScope.overwrite_default_scope(None):
            model = init_model(str(runs.config), str(path), device="cpu")
            assert tuple(model.dataset_meta["classes"]) == ("dark", "bright")
            logits.append(inference_model(model, str(image)).seg_logits.data)
    assert logits[0].std() > 0 and torch.equal(*logits)


def test_segmentation_inferencer_takes_a_delta(make_runs: Callable, image: Path, tmp_path: Path) -> None:
    runs = make_runs("APLAViT")
    found, drawn = [], []
    for path in (runs.whole / WHOLE, runs.delta / DELTA):
        with DefaultScope.overwrite_default_scope(None):
            infer = MMSegInferencer(model=str(runs.config), weights=str(path), device="cpu")
            found.append(infer(str(image), out_dir=str(tmp_path / path.suffix), show=False)["predictions"])
        (file,) = (tmp_path / path.suffix / "vis").iterdir()
        drawn.append(np.asarray(Image.open(file)))
    assert found[0].shape == (64, 72) and np.array_equal(*found)
    assert drawn[0].ndim == 3 and np.array_equal(*drawn)
    with pytest.raises(ValueError, match="Cannot find the config"):  # a delta's is a text, which nothing runs
        MMSegInferencer(None, weights=str(runs.delta / DELTA), device="cpu")


def test_detection_inferencer_takes_a_delta(make_runs: Callable, data: Path, tmp_path: Path) -> None:
    runs = make_runs("detector")
    found, drawn = [], []
    for path in (runs.whole / WHOLE, runs.delta / DELTA):
        out = tmp_path / path.suffix
        with DefaultScope.overwrite_default_scope(None):
            infer = DetInferencer(model=str(runs.config), weights=str(path), device="cpu", show_progress=False)
            (result,) = infer(str(data / "coco/images/scene_0.jpg"), out_dir=str(out), pred_score_thr=0.0)[
                "predictions"
            ]
        found.append(result)
        (file,) = (out / "vis").iterdir()
        drawn.append(np.asarray(Image.open(file)))
    assert found[0]["scores"] and found[0] == found[1] and np.array_equal(*drawn)


def test_nothing_is_tested_or_inferred_without_the_base(make_runs: Callable, tmp_path: Path) -> None:
    runs = make_runs("APLAViT")
    lonely = shutil.copy(runs.delta / DELTA, tmp_path)
    message = rf"{DELTA}' needs its base, the file 'base-[0-9a-f]{{16}}\.safetensors'.*copy it into one of them"
    with pytest.raises(DeltaError, match=message):
        run("test", runs.config, lonely, "--work-dir", tmp_path / "work")
    with pytest.raises(DeltaError, match=message), DefaultScope.overwrite_default_scope(None):
        init_model(str(runs.config), lonely, device="cpu")
    other = make_runs("VisionTransformer").delta / DELTA
    message = rf"{DELTA}' is not of this model, and nothing was loaded: it lacks 'backbone\.vit"
    with pytest.raises(DeltaError, match=message):
        run("test", runs.config, other, "--work-dir", tmp_path / "work")
    with pytest.raises(DeltaError, match=message), DefaultScope.overwrite_default_scope(None):
        MMSegInferencer(model=str(runs.config), weights=str(other), device="cpu")
    with pytest.raises(ValueError, match=r"no optimizer.*resume from '.*iter_2\.pth', beside it"):
        run("train", runs.delta / "small.py", "--resume", runs.delta / DELTA)
