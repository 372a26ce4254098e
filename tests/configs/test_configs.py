import re
from pathlib import Path
from typing import Any

import mmseg.models  # registers itself
import pytest
import timm
import torch
from helpers import ROOT
from helpers.small_configs import heads_of
from mmengine.config import Config
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import DATASETS, HOOKS, MODELS, DefaultScope
from mmseg.datasets import ADE20KDataset
from torch import nn
from torch.overrides import TorchFunctionMode

import apla_mm

pytestmark = pytest.mark.slow

SEG = ROOT / "configs/seg"
CONFIGS = sorted(SEG.glob("*.py"))
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")

#: configs that adapt a model of mmseg by the hook, without their common suffix -> attentions of the backbone
ATTENTIONS = {
    "mask2former_swin-t": 2 + 2 + 6 + 2,
    "segformer_mit-b0": 2 + 2 + 2 + 2,
    "segformer_mit-b2": 3 + 4 + 6 + 3,
    "setr-pup_mmseg-vit-b16": 12,
    "setr-pup_mmseg-vit-l16": 24,
    "upernet_swin-t": 2 + 2 + 6 + 2,
}
SUFFIX = "_apla_8xb2-160k_ade20k-512x512"
#: mmseg's own config of the model; it has none of SETR on ViT-B
STOCK = {
    "mask2former_swin-t": "mask2former/mask2former_swin-t_8xb2-160k_ade20k-512x512",
    "segformer_mit-b0": "segformer/segformer_mit-b0_8xb2-160k_ade20k-512x512",
    "segformer_mit-b2": "segformer/segformer_mit-b2_8xb2-160k_ade20k-512x512",
    "setr-pup_mmseg-vit-l16": "setr/setr_vit-l_pup_8xb2-160k_ade20k-512x512",
    "upernet_swin-t": "swin/swin-tiny-patch4-window7-in1k-pre_upernet_8xb2-160k_ade20k-512x512",
}
#: mmseg's own config that names the weights, with the normalisation they expect
WEIGHTS = {
    **STOCK,
    "setr-pup_mmseg-vit-b16": "segmenter/segmenter_vit-b_mask_8xb1-160k_ade20k-512x512",
    "setr-pup_mmseg-vit-l16": "segmenter/segmenter_vit-l_mask_8xb1-160k_ade20k-512x512",
}
MMSEG_CONFIGS = Path(mmseg.__file__).parent / ".mim/configs"

HOOKED = [SEG / f"{name}{SUFFIX}.py" for name in ATTENTIONS]
on_hooked = pytest.mark.parametrize("path", HOOKED, ids=lambda path: path.stem)
on_maps = pytest.mark.parametrize(
    "path",
    sorted({*CONFIGS} - {*HOOKED} - {*SEG.glob("eomt_*")} - {*SEG.glob("mask2former_*")}),
    ids=lambda path: path.stem,
)
on_apla_vit = pytest.mark.parametrize("path", sorted({*CONFIGS} - {*HOOKED}), ids=lambda path: path.stem)


class NumbersOnCPU(TorchFunctionMode):
    """mmseg's backbones read numbers out of torch.linspace, which has none on the meta device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {}, device="cpu") if func is torch.linspace else kwargs or {}
        return func(*args, **kwargs)


def build_on_meta(cfg: Config) -> Any:
    if cfg.model.backbone.type == "APLAViT":
        cfg.model.backbone.pretrained = False
    with DefaultScope.overwrite_default_scope("mmseg"), torch.device("meta"), NumbersOnCPU():
        return revert_sync_batchnorm(MODELS.build(cfg.model))


def built_heads_of(model: Any) -> list[nn.Module]:
    return [model.decode_head, *(getattr(model, "auxiliary_head", None) or [])]


@pytest.fixture(params=CONFIGS, ids=lambda path: path.stem)
def path(request: pytest.FixtureRequest) -> Path:
    return request.param


@pytest.fixture
def cfg(path: Path) -> Config:
    return Config.fromfile(path)


@pytest.fixture
def model(cfg: Config) -> nn.Module:
    return build_on_meta(cfg)


def hook_of(cfg: Config) -> Any:
    (hook,) = (hook for hook in cfg.custom_hooks if hook.type == "APLAHook")
    return hook


def test_stock_tools_find_the_package_by_custom_imports(cfg: Config) -> None:
    assert "apla_mm" in cfg.custom_imports["imports"]
    assert cfg.custom_imports["allow_failed_imports"] is False
    assert cfg.default_scope == "mmseg"


def test_config_runs_both_hooks(cfg: Config) -> None:
    assert {hook.type for hook in cfg.custom_hooks} == {"DataCheckHook", "APLAHook"}


def test_either_the_backbone_adapts_itself_or_the_hook_does(path: Path, cfg: Config) -> None:
    assert ("r" in hook_of(cfg)) == (cfg.model.backbone.type != "APLAViT") == (path in HOOKED)


def test_dumped_config_reads_back_the_same(cfg: Config, tmp_path: Path) -> None:
    cfg.dump(tmp_path / "dumped.py")
    assert Config.fromfile(tmp_path / "dumped.py").to_dict() == cfg.to_dict()


def test_heads_take_what_the_backbone_gives(cfg: Config, model: Any) -> None:
    height, width = cfg.model.data_preprocessor.size
    maps = model.extract_feat(torch.empty(2, 3, height, width, device="meta"))
    if blocks := cfg.model.backbone.get("query_blocks"):
        head = cfg.model.decode_head
        assert (head.embed_dims, head.num_blocks) == (model.backbone.embed_dims, len(maps[0].blocks))
        assert blocks == head.num_blocks
        return
    assert len(maps) == 4 and (cfg.model.get("neck") or len(model.backbone.out_indices) == 4)
    channels = [each.shape[1] for each in maps]
    for head in heads_of(cfg):
        index = head.get("in_index", [0, 1, 2, 3])  # Mask2Former takes all
        taken = channels[index] if isinstance(index, int) else [channels[i] for i in index]
        assert head.in_channels == taken


@on_maps
def test_heads_make_logits_of_every_map(cfg: Config, model: Any) -> None:
    height, width = cfg.model.data_preprocessor.size
    maps = model.extract_feat(torch.empty(2, 3, height, width, device="meta"))
    patch = model.backbone.patch_size[0]
    for head in built_heads_of(model):
        logits = head(maps)
        up = 16 if type(head).__name__ == "SETRUPHead" else 1  # a linear head's are resized in the loss
        assert logits.shape == (2, head.num_classes, height // patch * up, width // patch * up)
    indices = [head.in_index for head in heads_of(cfg)]
    assert sorted(torch.tensor(indices).flatten().tolist()) == [0, 1, 2, 3]
    assert model.backbone.out_indices[3] == len(model.backbone.vit.blocks) - 1


@on_apla_vit
def test_what_trains_is_what_the_config_says(path: Path, cfg: Config, model: Any) -> None:
    vit = model.backbone.vit
    trained = {name for name, parameter in vit.named_parameters() if parameter.requires_grad}
    if "_head_" in path.stem:
        assert not trained
    elif "_full_" in path.stem:
        unused = {"norm.weight", "norm.bias"}  # no map passes it
        assert {name for name, _ in vit.named_parameters()} - trained == unused
    else:
        assert len(model.backbone.report.projections) == len(vit.blocks)
        assert all(".attn.proj." in name for name in trained) and len(trained) == 2 * len(vit.blocks)
    assert all(p.requires_grad for head in built_heads_of(model) for p in head.parameters())


@on_hooked
def test_hook_adapts_every_attention_and_nothing_else_of_the_backbone(path: Path, cfg: Config, model: Any) -> None:
    hook = HOOKS.build(hook_of(cfg))
    assert hook.targets == ["backbone"] and not hook.trainable and not any(hook.train.values())
    report = apla_mm.adapt(model.backbone, **hook.arguments)
    assert len(report.projections) == ATTENTIONS[path.stem.removesuffix(SUFFIX)]
    assert all(8 * len(projection.channels) == projection.out_features for projection in report.projections)
    trained = {name for name, parameter in model.backbone.named_parameters() if parameter.requires_grad}
    parts = ("weight", "bias")
    assert trained == {f"{projection.name}.trained.{part}" for projection in report.projections for part in parts}
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone."))


@on_hooked
def test_model_is_mmsegs_own_with_the_weights_it_names(path: Path, cfg: Config, model: Any) -> None:
    if not MMSEG_CONFIGS.is_dir():
        pytest.skip("mmseg was installed without its configs")
    name = path.stem.removesuffix(SUFFIX)
    if name in STOCK:
        stock = build_on_meta(Config.fromfile(MMSEG_CONFIGS / f"{STOCK[name]}.py"))
        shapes, expected = ({key: tensor.shape for key, tensor in m.state_dict().items()} for m in (model, stock))
        if "vit-l16" in name:
            expected["backbone.patch_embed.projection.bias"] = torch.Size([1024])
        assert shapes == expected
    named = Config.fromfile(MMSEG_CONFIGS / f"{WEIGHTS[name]}.py").model
    url = named.get("pretrained") or named.backbone.init_cfg.checkpoint
    init_cfg = cfg.model.backbone.init_cfg
    assert init_cfg.type == "Pretrained" and init_cfg.checkpoint.startswith("https://")
    assert Path(init_cfg.checkpoint).name == Path(url).name  # mmseg's releases name different hosts
    for key in ("mean", "std", "bgr_to_rgb", "pad_val", "seg_pad_val", "test_cfg"):
        assert cfg.model.data_preprocessor.get(key) == named.data_preprocessor.get(key)


@on_apla_vit
def test_pretrained_weights_exist_and_images_are_normalised_for_them(cfg: Config) -> None:
    name = cfg.model.backbone.model_name
    assert timm.is_model_pretrained(name) and cfg.model.backbone.get("pretrained", True) is True
    weights = timm.get_pretrained_cfg(name)
    preprocessor = cfg.model.data_preprocessor
    assert preprocessor.bgr_to_rgb is True
    if "_paper_" in cfg.filename:  # ImageNet's, though the weights saw others
        weights = timm.get_pretrained_cfg("vit_base_patch14_dinov2.lvd142m")
    assert preprocessor.mean == pytest.approx([255 * value for value in weights.mean])
    assert preprocessor.std == pytest.approx([255 * value for value in weights.std])


def test_one_size_holds_everywhere(cfg: Config) -> None:
    size = tuple(cfg.model.data_preprocessor.size)
    (crop,) = (t for t in cfg.train_dataloader.dataset.pipeline if t["type"] == "RandomCrop")
    assert size == tuple(crop["crop_size"]) == tuple(cfg.model.backbone.get("img_size", size))
    assert cfg.model.test_cfg.mode in ("slide", "whole")
    if cfg.model.test_cfg.mode == "slide":
        assert size == tuple(cfg.model.test_cfg.crop_size)
        assert all(0 < stride <= side for stride, side in zip(cfg.model.test_cfg.stride, size, strict=True))
    assert cfg.model.data_preprocessor.seg_pad_val == 255


@on_apla_vit
def test_images_are_whole_patches(cfg: Config, model: Any) -> None:
    patch = model.backbone.patch_size[0]
    assert all(side % patch == 0 for side in cfg.model.data_preprocessor.size)
    assert cfg.model.data_preprocessor.test_cfg.size_divisor == patch
    assert cfg.model.test_cfg.mode == ("whole" if cfg.model.get("neck") else "slide")  # Mask2Former takes whole images
    assert "img_size" in cfg.model.backbone


def test_labels_are_loaded_at_their_own_size_for_scoring(cfg: Config) -> None:
    for loader in LOADERS[1:]:
        steps = [transform["type"] for transform in cfg[loader].dataset.pipeline]
        assert steps.index("Resize") < steps.index("LoadAnnotations")
    assert cfg.val_dataloader.to_dict() == cfg.test_dataloader.to_dict()
    assert cfg.val_evaluator.to_dict() == cfg.test_evaluator.to_dict()


def test_classes_of_data_and_heads_agree(cfg: Config) -> None:
    counts = set()
    for loader in LOADERS:
        dataset = {**cfg[loader].dataset.to_dict(), "pipeline": [], "lazy_init": True, "_scope_": "mmseg"}
        counts.add(len(DATASETS.build(dataset).metainfo["classes"]))
    assert counts == {head.num_classes for head in heads_of(cfg)}


def test_custom_config_names_its_own_classes_and_the_others_are_ade20k(path: Path, cfg: Config) -> None:
    if "_custom" in path.stem:
        assert [tuple(cfg[loader].dataset.metainfo.classes) for loader in LOADERS] == [("background", "object")] * 3
        assert {cfg[loader].dataset.type for loader in LOADERS} == {"BaseSegDataset"}
    else:
        assert {cfg[loader].dataset.type for loader in LOADERS} == {"ADE20KDataset"}
        assert {head.num_classes for head in heads_of(cfg)} == {len(ADE20KDataset.METAINFO["classes"])}


def test_name_tells_batch_length_and_size(path: Path, cfg: Config) -> None:
    told = re.search(r"_(\d+)xb(\d+)-(\d+)k_.*-(\d+)x(\d+)$", path.stem)
    gpus, batch, thousands, height, width = map(int, told.groups()) if told else (1, 16, 160, 512, 512)
    assert cfg.train_dataloader.batch_size == batch
    assert gpus * batch == cfg.auto_scale_lr.base_batch_size == 16
    assert cfg.train_cfg.max_iters == 1000 * thousands == max(part.end for part in cfg.param_scheduler)
    assert tuple(cfg.model.data_preprocessor.size) == (height, width)


def leaves(node: Any, path: str = "") -> dict[str, Any]:
    children = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else None
    if children is None:
        return {path: node}
    return {k: v for key, child in children for k, v in leaves(child, f"{path}.{key}".lstrip(".")).items()}


@pytest.mark.parametrize(
    ("twin", "keys"),
    [
        (
            "setr-pup_vit-b16_full_1xb16-160k_ade20k-512x512",
            {"model.backbone.apla", "model.backbone.apla.r", "model.backbone.apla.seed", "optim_wrapper.optimizer.lr"},
        ),
        (
            "setr-pup_vit-b16_head_1xb16-160k_ade20k-512x512",
            {
                *("model.backbone.apla", "model.backbone.apla.r", "model.backbone.apla.seed"),
                "model.backbone.frozen",
            },
        ),
    ],
)
def test_twins_for_comparison_differ_in_what_trains_alone(twin: str, keys: set[str]) -> None:
    apla, other = (leaves(Config.fromfile(SEG / f"{name}.py").to_dict()) for name in ("apla_vitb_ade", twin))
    absent = object()
    assert {key for key in apla.keys() | other.keys() if apla.get(key, absent) != other.get(key, absent)} == keys
