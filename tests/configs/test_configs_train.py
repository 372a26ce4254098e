"""Every config trains: from its own file, its sizes reduced, by what apla-mm train runs."""

import argparse
import copy
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import timm
import torch
from helpers.comparisons import assert_same, changed_rows
from helpers.data_sets import write_class_folders, write_panoptic, write_scenes
from helpers.logs import scalars_of
from helpers.optional import shipped_configs
from helpers.small_configs import shrink
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor, nn

from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.method import PartialLinear
from apla_mm.options.command_line import build_runner, load_config

pytestmark = pytest.mark.slow

CONFIGS = shipped_configs()

#: learning rates of the backbone and of the heads
RATES = {
    "eomt_dinov2-l14_apla_8xb2-40k_ade20k-518x518": (1e-4, 1e-4),
    "eomt_dinov2-l14_apla_8xb2-90k_coco-644x644": (1e-4, 1e-4),
    "eomt_dinov2-l14_apla_8xb2-90k_coco-panoptic-644x644": (1e-4, 1e-4),
    "mask2former_dinov2-b14_apla_8xb2-160k_ade20k-518x518": (1e-4, 1e-4),
    "mask2former_swin-t_apla_8xb2-160k_ade20k-512x512": (1e-4, 1e-4),
    "segformer_mit-b0_apla_8xb2-160k_ade20k-512x512": (3e-4, 6e-4),
    "segformer_mit-b2_apla_8xb2-160k_ade20k-512x512": (3e-4, 6e-4),
    "setr-pup_vit-l16_paper_8xb2-160k_ade20k-512x512": (1e-3, 1e-2),
    "setr-pup_vit-b16_full_1xb16-160k_ade20k-512x512": (6e-5, 6e-4),
    "upernet_swin-t_apla_8xb2-160k_ade20k-512x512": (3e-4, 6e-5),
    "linear_dinov2-b14_paper_1xb64-10k_custom-224x224": (3e-5, 3e-5),
    "mask-rcnn_vit-b16_full_8xb2-90k_coco-1024x1024": (1e-5, 1e-4),
}
SCHEDULE_RATES = {"mmseg": (3e-4, 3e-3), "mmdet": (1e-4, 1e-4), "mmpretrain": (3e-4, 3e-3)}


class Start(Hook):
    """Keeps the weights that training starts from, after init_weights."""

    def before_train(self, runner: Runner) -> None:
        self.state = copy.deepcopy(runner.model.state_dict())


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("scenes"), training=2, validation=2)


@pytest.fixture(scope="module")
def ade_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As ADE20K has them: 0 means no class."""
    return write_scenes(tmp_path_factory.mktemp("ade"), training=2, validation=2, first=1)


@pytest.fixture(scope="module")
def coco_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small COCO data set, at the places of the real one too."""
    root = write_panoptic(tmp_path_factory.mktemp("coco"))
    for split in ("train", "val"):
        (root / f"{split}2017").symlink_to(root / "images")
        for name in (f"instances_{split}.json", f"panoptic_{split}.json", f"panoptic_{split}"):
            (root / f"annotations/{name.replace(split, f'{split}2017')}").symlink_to(root / f"annotations/{name}")
    return root


@pytest.fixture(scope="module")
def folders_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("classes"))


@pytest.fixture(scope="module", params=CONFIGS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def run(
    request: pytest.FixtureRequest,
    data_root: Path,
    ade_root: Path,
    coco_root: Path,
    folders_root: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> SimpleNamespace:
    """A finished training run of one config."""
    name, work_dir = request.param.stem, tmp_path_factory.mktemp("work")
    if request.param.parent.name == "det":
        data_root = coco_root
    elif request.param.parent.name == "cls":
        data_root = folders_root
    elif "_custom" not in name:
        data_root = ade_root
    options = dict(config=str(request.param), cfg_options=dict(data_root=str(data_root)), work_dir=str(work_dir))
    cfg = load_config(argparse.Namespace(**options, launcher="none", local_rank=0))
    shrink(cfg)
    cfg.randomness = dict(seed=0)
    # mmengine keeps one in a process for each name, with its folder; a config may be run twice there
    cfg.visualizer.name = f"{name}_{work_dir.name}"
    model = cfg.model.copy()
    pretrained = write_pretrained(cfg, work_dir / "pretrained.pth")
    runner = build_runner(cfg)
    start = Start()
    runner.register_hook(start)
    runner.train()
    saved = read_checkpoint(str(work_dir / "iter_2.pth"))["state_dict"]
    return SimpleNamespace(
        name=name,
        scope=cfg.default_scope,
        work_dir=work_dir,
        model=model,
        pretrained=pretrained,
        runner=runner,
        start=start.state,
        saved=saved,
    )


def write_pretrained(cfg: Config, path: Path) -> dict[str, Tensor]:
    """Weights of the plain backbone in a file, which stands in for those that the config names."""
    own = cfg.model.backbone.type == "APLAViT"
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        backbone = MODELS.build(cfg.model.backbone)
    backbone.init_weights()
    state = (backbone.vit if own else backbone).state_dict()
    detector = "convert_weights" in cfg.model.backbone  # mmdet's Swin reads its own keys from whole detectors alone
    torch.save({f"backbone.{name}": tensor for name, tensor in state.items()} if detector else state, path)
    source = dict(pretrained=str(path)) if own else dict(init_cfg=dict(type="Pretrained", checkpoint=str(path)))
    cfg.model.backbone.update(source)
    if detector:
        cfg.model.backbone.convert_weights = False
    return {f"backbone.vit.{name}" if own else f"backbone.{name}": tensor for name, tensor in state.items()}


def trained_channels(model: nn.Module) -> dict[str, list[int]]:
    """Weights and biases of adapted projections, and their rows that train."""
    partial = ((name, module) for name, module in model.named_modules() if isinstance(module, PartialLinear))
    return {f"{name}.{part}": m.trained.channels.tolist() for name, m in partial for part in ("weight", "bias")}


def trained_tensors(model: nn.Module) -> set[str]:
    """Names in the state dict of all that trains, in whole or in part."""
    return {name.replace(".trained.", ".") for name, p in model.named_parameters() if p.requires_grad}


def test_two_losses_are_logged_and_finite(run: SimpleNamespace) -> None:
    losses = [line["loss"] for line in scalars_of(run.work_dir) if "loss" in line]
    assert len(losses) == 2 and all(map(math.isfinite, losses))


def test_the_adapted_backbone_starts_from_the_plain_ones_pretrained_weights(run: SimpleNamespace) -> None:
    backbone = {name: tensor for name, tensor in run.start.items() if name.startswith("backbone.")}
    assert_same(backbone, run.pretrained)


def test_what_trains_changed_and_nothing_else(run: SimpleNamespace) -> None:
    model, trained = run.runner.model, trained_tensors(run.runner.model)
    channels = trained_channels(model)
    parameters = {name for name, _ in model.named_parameters()}
    rows = changed_rows(run.start, run.saved)
    changed = set(rows)
    assert changed & parameters == trained
    assert not any(name.startswith("backbone.") for name in changed - parameters)
    assert {name: rows.get(name) for name in channels} == channels
    if run.model.backbone.type != "APLAViT" and "_apla_" in run.name:
        backbone = {name for name in trained if name.startswith("backbone.")}
        if run.scope == "mmdet":  # W_O in full
            assert all(".proj." in name for name in backbone) and len(backbone) == 2 * 8 and not channels
        else:
            assert backbone == set(channels)
            assert all(8 * len(rows) == len(run.saved[name]) for name, rows in channels.items())
    assert all(p.requires_grad for name, p in model.named_parameters() if not name.startswith("backbone."))


def test_optimizer_holds_exactly_what_trains_at_its_rates(run: SimpleNamespace) -> None:
    groups = run.runner.optim_wrapper.optimizer.param_groups
    held = [id(p) for group in groups for p in group["params"]]
    trained = {id(p): name for name, p in run.runner.model.named_parameters() if p.requires_grad}
    assert len(held) == len(set(held)) and set(held) == set(trained)
    rates: dict[bool, set[float]] = {True: set(), False: set()}
    for group in groups:
        for p in group["params"]:
            rates[trained[id(p)].startswith("backbone.")].add(group["initial_lr"])
    backbone, heads = RATES.get(run.name, SCHEDULE_RATES[run.scope])
    assert sorted(rates[False]) == [pytest.approx(heads)]
    assert sorted(rates[True]) == ([] if "_head_" in run.name else [pytest.approx(backbone)])


def test_checkpoint_is_read_by_timm(run: SimpleNamespace) -> None:
    """The backbone's part of what training wrote gives timm's model the same maps, of images that are not square."""
    settings = run.model.backbone
    if run.scope != "mmseg" or settings.type != "APLAViT" or settings.get("query_blocks"):
        pytest.skip("the backbone is not timm's ViT, which gives maps")
    size = tuple(run.model.data_preprocessor.get("size", (64, 96)))
    assert size[0] < size[1]
    vit = timm.create_model(settings.model_name, num_classes=0, img_size=size, **settings.model_kwargs)
    prefix = "backbone.vit."
    state = {key.removeprefix(prefix): tensor for key, tensor in run.saved.items() if key.startswith(prefix)}
    missing, unexpected = vit.load_state_dict(state, strict=False)
    assert not unexpected and all(key.startswith(("attn_pool.", "head.")) for key in missing)  # of classifiers
    images = torch.randn(2, 3, *size)
    with torch.no_grad():
        maps = run.runner.model.eval().backbone(images)
        indices, norm = settings.out_indices, settings.get("norm", False)
        expected = vit.eval().forward_intermediates(images, indices=indices, norm=norm, intermediates_only=True)
    assert len(maps) == len(expected) == 4
    for one, other in zip(maps, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_checkpoint_is_the_plain_models(run: SimpleNamespace) -> None:
    if "apla" in run.model.backbone:
        run.model.backbone.apla = None
    with DefaultScope.overwrite_default_scope(run.scope):
        plain = MODELS.build(run.model)
    plain.load_state_dict(run.saved)
    x = torch.randn(1, 3, *run.model.data_preprocessor.get("size", (64, 64)))
    with torch.no_grad():
        expected, own = (model.eval().extract_feat(x) for model in (run.runner.model, plain))
        if run.model.backbone.get("query_blocks"):  # the other blocks, and then these
            name = "decode_head" if run.scope == "mmseg" else "panoptic_head"
            expected, own = (
                [t for part in getattr(m, name)(maps, None) for t in part]
                for m, maps in ((run.runner.model, expected), (plain, own))
            )
        torch.testing.assert_close(own, expected, rtol=1e-5, atol=1e-5)
