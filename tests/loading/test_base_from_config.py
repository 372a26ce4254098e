"""Bases made anew from what a config names, against those that the run wrote."""

import shutil
import uuid
from copy import deepcopy
from pathlib import Path

import pytest
import torch
from helpers.comparisons import assert_same
from helpers.data_sets import write_scenes
from helpers.small_configs import segmentation_config
from helpers.tools import CONVERTERS, call_tool
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner

from apla_mm.delta import BaseMismatchError, DeltaError
from apla_mm.loading.base_from_config import initial_state, make_base
from apla_mm.loading.checkpoint_reader import read_checkpoint

pytestmark = pytest.mark.slow

DELTA = "iter_1.delta.safetensors"


def backbone_with(kind: str, weights: Path | None) -> dict:
    """Of APLAViT, which adapts itself, or of mmseg's ViT, whose position embedding is resampled when it is loaded."""
    if kind == "APLAViT":
        vit = dict(depth=4, embed_dim=16, num_heads=2)
        return dict(
            type=kind,
            model_name="vit_tiny_patch16_224",
            model_kwargs=vit,
            out_indices=(0, 1, 2, 3),
            pretrained=str(weights) if weights else False,
            apla=dict(r=4),
        )
    sizes = dict(img_size=32 if weights else 64, embed_dims=16, num_layers=4, num_heads=2, out_indices=(0, 1, 2, 3))
    return dict(type=kind, **sizes, init_cfg=dict(type="Pretrained", checkpoint=str(weights)) if weights else None)


def write_weights(kind: str, path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    with DefaultScope.overwrite_default_scope("mmseg"):
        backbone = MODELS.build(backbone_with(kind, None))
    torch.save(getattr(backbone, "vit", backbone).state_dict(), path)
    return path


@pytest.fixture(scope="module", params=["APLAViT", "VisionTransformer"])
def run(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
) -> Config:
    """The config of a run that began with pretrained weights and wrote a delta."""
    folder = tmp_path_factory.mktemp(request.param)
    cfg = segmentation_config(write_scenes(folder / "scenes"), folder / "work")
    cfg.model.backbone = backbone_with(request.param, write_weights(request.param, folder / "vit.pth", 1))
    hook = dict(type="APLAHook") | (dict(r=4) if request.param == "VisionTransformer" else {})
    cfg.custom_hooks = [hook, dict(type="DeltaHook")]
    cfg.default_hooks.checkpoint = dict(type="AtomicCheckpointHook", by_epoch=False, interval=1)
    Runner.from_cfg(deepcopy(cfg)).train()
    return cfg


@pytest.fixture
def trained(run: Config) -> Config:
    return deepcopy(run)


@pytest.fixture
def lonely(trained: Config, tmp_path: Path) -> Path:
    """The delta, far from its base."""
    (tmp_path / "elsewhere/here").mkdir(parents=True)
    return Path(shutil.copy(Path(trained.work_dir) / DELTA, tmp_path / "elsewhere/here"))


def scores(cfg: Config, checkpoint: Path) -> dict[str, float]:
    cfg = deepcopy(cfg)
    cfg.load_from, cfg.experiment_name = str(checkpoint), uuid.uuid4().hex
    cfg.work_dir = str(checkpoint.parent / "work")
    return {key: value for key, value in Runner.from_cfg(cfg).test().items() if "time" not in key}


def only_base(folder: Path) -> Path:
    (path,) = folder.glob("base-*.safetensors")
    return path


def test_runner_finds_the_base_as_its_config_names_it(trained: Config, lonely: Path) -> None:
    work = Path(trained.work_dir)
    whole = scores(trained, work / "iter_1.pth")
    assert scores(trained, lonely) == whole and whole["mIoU"] > 0
    made, written = only_base(lonely.parent / "bases"), only_base(work)
    assert made.name == written.name and made.read_bytes() == written.read_bytes()
    expected, read = (read_checkpoint(path)["state_dict"] for path in (work / "iter_1.pth", lonely))
    assert_same(read, expected)


def test_other_weights_are_refused_with_what_differs(trained: Config, lonely: Path, tmp_path: Path) -> None:
    kind = trained.model.backbone.type
    trained.model.backbone = backbone_with(kind, write_weights(kind, tmp_path / "vit.pth", 2))
    with pytest.raises(DeltaError, match="needs its base.*names are not its base: it was trained on another base"):
        scores(trained, lonely)
    (tmp_path / "vit.pth").unlink()
    with pytest.raises(DeltaError, match=r"names are not its base: .*vit\.pth"):
        scores(trained, lonely)
    assert not (lonely.parent / "bases").exists()


def test_tool_makes_it(
    trained: Config,
    lonely: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    trained.dump(tmp_path / "config.py")
    call_tool(CONVERTERS / "make_base.py", tmp_path / "config.py", lonely, "--out", tmp_path)
    path = only_base(tmp_path)
    assert capsys.readouterr().out.splitlines()[-1] == str(path)
    assert path.read_bytes() == only_base(Path(trained.work_dir)).read_bytes()


@pytest.mark.parametrize("run", ["APLAViT"], indirect=True)
def test_training_that_began_with_load_from(trained: Config, lonely: Path, tmp_path: Path) -> None:
    state = initial_state(trained)
    torch.save(state, tmp_path / "begin.pth")
    before = torch.random.get_rng_state()
    trained.model.backbone = backbone_with("APLAViT", write_weights("APLAViT", tmp_path / "vit.pth", 2))
    with pytest.raises(BaseMismatchError, match="it was trained on another base"):
        make_base(trained, lonely)
    trained.load_from = str(tmp_path / "begin.pth")
    assert make_base(trained, lonely).read_bytes() == only_base(Path(trained.work_dir)).read_bytes()
    trained.model = dict(type="SegTTAModel", module=trained.model)
    again = initial_state(trained)
    assert_same(state, again)
    torch.random.set_rng_state(before)
    initial_state(trained)
    assert torch.equal(torch.random.get_rng_state(), before)
