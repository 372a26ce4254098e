import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mmdet
import pytest
import timm
import torch
from helpers import ROOT
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import nn

from apla_mm import adapt
from apla_mm.method import PartialLinear

DET = ROOT / "configs/det"
MMDET = Path(mmdet.__file__).parent / ".mim/configs"
CONFIGS = sorted(DET.glob("*.py"))
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")
APLA_VIT = [path for path in CONFIGS if "swin" not in path.stem]


def build(model: Any) -> Any:
    backbone = model["backbone"]
    if backbone["type"] == "APLAViT":
        backbone["pretrained"] = False
    device = "cpu" if backbone["type"] == "SwinTransformer" else "meta"  # mmdet's Swin reads numbers from tensors
    with DefaultScope.overwrite_default_scope("mmdet"), torch.device(device):
        return MODELS.build(model)


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture(scope="module")
def cfg(path: Path) -> Config:
    return Config.fromfile(path)


@pytest.fixture(scope="module")
def model(cfg: Config) -> nn.Module:
    return build(copy.deepcopy(cfg.model))


def steps(node: Any) -> Iterator[Any]:
    """All transforms of a pipeline, those inside others too."""
    if isinstance(node, dict) and "type" in node:
        yield node
        node = node.get("transforms", [])
    if isinstance(node, list | tuple):
        for child in node:
            yield from steps(child)


def test_stock_tools_find_the_package_and_both_hooks_run(cfg: Config) -> None:
    assert "apla_mm" in cfg.custom_imports["imports"] and cfg.custom_imports["allow_failed_imports"] is False
    assert cfg.default_scope == "mmdet"
    assert {hook.type for hook in cfg.custom_hooks} == {"DataCheckHook", "APLAHook"}


def test_dumped_config_reads_back_the_same(cfg: Config, tmp_path: Path) -> None:
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == cfg.to_dict()


def test_what_trains_is_what_the_config_says(path: Path, cfg: Config, model: Any) -> None:
    (hook,) = (hook for hook in cfg.custom_hooks if hook.type == "APLAHook")
    options = {key: value for key, value in hook.items() if key != "type"}
    if options:
        model = copy.deepcopy(model)
        adapt(model.backbone, **options)
    trained = {name for name, p in model.backbone.named_parameters() if p.requires_grad}
    projections = [name for name, _ in model.backbone.named_modules() if name.endswith(".proj") and "attn" in name]
    assert len(projections) == (24 if "-l14_" in path.stem else 12)  # of ViT-B as of Swin-T
    if "_head_" in path.stem:
        assert not trained
    elif "_full_" in path.stem:
        assert trained == {name for name, _ in model.backbone.named_parameters()}
    else:
        assert {name.replace(".trained.", ".") for name in trained} == {
            f"{name}.{part}" for name in projections for part in ("weight", "bias")
        }
    partial = [module for module in model.modules() if isinstance(module, PartialLinear)]
    assert len(partial) == (len(projections) if cfg.model.backbone.get("apla") else 0)
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone."))


def test_levels_have_the_strides_that_heads_expect(cfg: Config, model: Any) -> None:
    if "panoptic_head" in cfg.model:
        assert cfg.model.panoptic_head.num_blocks == cfg.model.backbone.query_blocks
        return
    size = 256
    levels = model.extract_feat(torch.empty(1, 3, size, size, device=next(model.parameters()).device))
    strides = [size // level.shape[-1] for level in levels]
    head = model.rpn_head if "rpn_head" in cfg.model else model.bbox_head
    if hasattr(head, "prior_generator"):
        assert strides == [stride[0] for stride in head.prior_generator.strides]
    else:
        assert strides == [8, 16, 32, 64]
    if "roi_head" in cfg.model:
        for extractor in (model.roi_head.bbox_roi_extractor, model.roi_head.mask_roi_extractor):
            assert extractor.featmap_strides == strides[:4]


@pytest.mark.parametrize("path", APLA_VIT, ids=lambda path: path.stem, indirect=True)
def test_one_size_holds_everywhere(cfg: Config, model: Any) -> None:
    size = tuple(cfg.model.backbone.img_size)
    for loader in LOADERS:
        found = {step.type: step for step in steps(cfg[loader].dataset.pipeline)}
        if loader == "train_dataloader":
            assert tuple(found["RandomResize"].scale) == tuple(found["RandomCrop"].crop_size) == size
        else:
            assert tuple(found["Resize"].scale) == size
    assert size == (cfg.model.data_preprocessor.pad_size_divisor,) * 2
    if model.backbone.query_blocks:
        assert all(side % patch == 0 for side, patch in zip(size, model.backbone.patch_size, strict=True))
        return
    assert all(side % (16 * model.backbone.window_size) == 0 for side in size)  # no window is padded
    assert sorted(model.backbone.global_blocks) == [2, 5, 8, 11]


@pytest.mark.parametrize("path", APLA_VIT, ids=lambda path: path.stem, indirect=True)
def test_pretrained_weights_exist_and_images_are_normalised_for_them(cfg: Config) -> None:
    name = cfg.model.backbone.model_name
    assert timm.is_model_pretrained(name)
    weights = timm.get_pretrained_cfg(name)
    assert cfg.model.data_preprocessor.mean == pytest.approx([255 * value for value in weights.mean])
    assert cfg.model.data_preprocessor.std == pytest.approx([255 * value for value in weights.std])


def test_validation_and_test_score_what_they_load(path: Path, cfg: Config) -> None:
    assert cfg.val_dataloader.to_dict() == cfg.test_dataloader.to_dict()
    assert cfg.val_evaluator.to_dict() == cfg.test_evaluator.to_dict()
    dataset = cfg.val_dataloader.dataset
    assert cfg.val_evaluator.ann_file == f"{dataset.data_root}/{dataset.ann_file}"
    if dataset.type == "CocoPanopticDataset":
        assert cfg.val_evaluator.seg_prefix == f"{dataset.data_root}/{dataset.data_prefix.seg}"
        return
    masks = bool({"roi_head", "panoptic_head"} & cfg.model.keys())
    assert cfg.val_evaluator.metric == (["bbox", "segm"] if masks else "bbox")
    for loader in LOADERS:
        (load,) = (step for step in steps(cfg[loader].dataset.pipeline) if step.type == "LoadAnnotations")
        assert load.with_bbox is True and load.get("with_mask", False) is masks
    types = [step.type for step in steps(dataset.pipeline)]
    assert types.index("Resize") < types.index("LoadAnnotations")


def test_classes_of_data_and_heads_agree(path: Path, cfg: Config) -> None:
    if path.stem == "apla_vitb_custom":
        assert {tuple(cfg[loader].dataset.metainfo.classes) for loader in LOADERS} == {("object",)}
        expected = 1
    else:
        assert not any("metainfo" in cfg[loader].dataset for loader in LOADERS)
        expected = 80
    heads = (
        [cfg.model.roi_head.bbox_head, cfg.model.roi_head.mask_head]
        if "roi_head" in cfg.model
        else [cfg.model.get("bbox_head") or cfg.model.panoptic_head]
    )
    assert {head.get("num_classes", head.get("num_things_classes")) for head in heads} == {expected}
    stuff = 53 if cfg.train_dataloader.dataset.type == "CocoPanopticDataset" else 0
    assert {head.get("num_stuff_classes", stuff) for head in heads} == {stuff}


def test_name_tells_batch_and_length(path: Path, cfg: Config) -> None:
    told = re.search(r"_(\d+)xb(\d+)-(\d+)k_coco(?:-panoptic)?-\d+x\d+$", path.stem)
    gpus, batch, thousands = map(int, told.groups()) if told else (8, 2, 90)
    steps_ = 12 * 7330 if "_8xb2-12e_" in path.stem else 1000 * thousands
    assert cfg.train_dataloader.batch_size == batch
    assert gpus * batch == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.max_iters == steps_ == max(part.end for part in cfg.param_scheduler)
    assert all(m < cfg.train_cfg.max_iters for part in cfg.param_scheduler for m in part.get("milestones", []))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mask-rcnn_swin-t_apla_8xb2-90k_coco-1333x800", "swin/mask-rcnn_swin-t-p4-w7_fpn_1x_coco"),
        ("dino_swin-t_apla_8xb2-90k_coco-1333x800", "dino/dino-4scale_r50_8xb2-12e_coco"),
        ("retinanet_vit-b16_apla_8xb2-90k_coco-1024x1024", "retinanet/retinanet_r50_fpn_1x_coco"),
    ],
)
def test_heads_are_mmdets_own(ours: str, theirs: str) -> None:
    """Same parameters, same losses and same settings as in mmdet's config of that detector, behind the backbone."""
    cfg, reference = Config.fromfile(DET / f"{ours}.py"), Config.fromfile(MMDET / f"{theirs}.py")
    reference.model.backbone.init_cfg = None
    model, other = build(cfg.model), build(reference.model)

    def shapes(detector: nn.Module) -> dict[str, torch.Size]:
        skipped = ("backbone.", "neck.") if "swin" not in theirs else ()
        found = {key: tensor.shape for key, tensor in detector.state_dict().items() if not key.startswith(skipped)}
        # ours normalises the convolutions of RetinaNet, whose norms mmdet's config leaves out
        return {re.sub(r"_convs\.(\d)\.conv\.bias$", "", key): s for key, s in found.items() if ".ln." not in key}

    ours_, theirs_ = shapes(model), shapes(other)
    if "retinanet" in theirs:
        theirs_ = {key: shape for key, shape in theirs_.items() if key.endswith(".weight") or "retina_" in key}
        ours_ = {key: shape for key, shape in ours_.items() if key.endswith(".weight") or "retina_" in key}
    assert ours_ == theirs_
    assert model.test_cfg == other.test_cfg

    def losses(detector: nn.Module) -> dict[str, Any]:
        found = {}
        for name, module in detector.named_modules():
            if name.rpartition(".")[-1].startswith("loss_"):
                settings = {k: v for k, v in vars(module).items() if not k.startswith("_") and not callable(v)}
                found[name] = (type(module).__name__, settings)
        return found

    assert losses(model) == losses(other)

    def thresholds(config: Any) -> list[Any]:
        return list(nested(config.to_dict(), "iou_thr"))

    assert thresholds(cfg.model.train_cfg) == thresholds(reference.model.train_cfg)


def nested(node: Any, word: str) -> Iterator[dict[str, Any]]:
    """Of each dict, the settings whose name holds a word."""
    if isinstance(node, dict):
        if found := {key: value for key, value in node.items() if word in key}:
            yield found
        for child in node.values():
            yield from nested(child, word)


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        return {path: node}
    return {k: v for key, child in children for k, v in leaves(child, f"{path}.{key}".lstrip(".")).items()}


VIT = {"model.backbone.apla", "model.backbone.apla.r", "model.backbone.apla.seed"}


@pytest.mark.parametrize(
    ("apla", "twin", "keys"),
    [
        (
            "apla_vitb_coco",
            "mask-rcnn_vit-b16_full_8xb2-90k_coco-1024x1024",
            {*VIT, "optim_wrapper.paramwise_cfg.custom_keys.backbone.lr_mult"},
        ),
        ("apla_vitb_coco", "mask-rcnn_vit-b16_head_8xb2-90k_coco-1024x1024", {*VIT, "model.backbone.frozen"}),
        (
            "mask-rcnn_swin-t_apla_8xb2-90k_coco-1333x800",
            "mask-rcnn_swin-t_full_8xb2-90k_coco-1333x800",
            {"custom_hooks.1.r"},
        ),
        (
            "mask-rcnn_swin-t_apla_8xb2-90k_coco-1333x800",
            "mask-rcnn_swin-t_head_8xb2-90k_coco-1333x800",
            {"custom_hooks.1.r", "custom_hooks.1.blocks"},
        ),
    ],
)
def test_twins_for_comparison_differ_in_what_trains_alone(apla: str, twin: str, keys: set[str]) -> None:
    one, other = (leaves(Config.fromfile(DET / f"{name}.py").to_dict()) for name in (apla, twin))
    absent = object()
    assert {key for key in one.keys() | other.keys() if one.get(key, absent) != other.get(key, absent)} == keys
