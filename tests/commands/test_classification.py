"""Classification by the tools, as users call them: trained, resumed, tested, as a delta, by k-NN."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from helpers import ROOT
from helpers.comparisons import assert_same, assert_same_checkpoint, changed_rows
from helpers.data_sets import write_class_folders
from helpers.logs import log_of
from helpers.optional import needs
from helpers.processes import run
from helpers.small_configs import classification_config
from helpers.tools import CONVERTERS, call_tool
from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, DefaultScope

from apla_mm.loading.checkpoint_reader import read_checkpoint

needs("mmpretrain")
pytestmark = pytest.mark.slow
TRAIN, TEST = (ROOT / f"tools/{name}.py" for name in ("train", "test"))
KNN = ROOT / "tools/analysis_tools/knn.py"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("classes"))


def write_config(root: Path, folder: Path) -> Path:
    """The shipped config, small, with a file of pretrained weights, and no classes named."""
    cfg = Config.fromfile(ROOT / "configs/cls/linear_dinov2-s14_apla_1xb64-10k_custom-224x224.py")
    small = classification_config(root, folder)
    cfg.model.backbone, cfg.model.head = small.model.backbone, small.model.head
    cfg.model.head.num_classes = None
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.random.fork_rng():
        torch.manual_seed(0)
        vit = MODELS.build({**cfg.model.backbone, "apla": None}).vit
    torch.save(vit.state_dict(), folder / "base.pth")
    cfg.model.backbone.pretrained = str(folder / "base.pth")
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        loader.update(batch_size=2, num_workers=0, persistent_workers=False)
    cfg.custom_hooks = [*cfg.custom_hooks, dict(type="DeltaHook")]
    cfg.dump(str(folder / "config.py"))
    return folder / "config.py"


@pytest.fixture(scope="module")
def trained(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of three steps, in ``work``, which was done again from its second step on, in ``again``."""
    folder = tmp_path_factory.mktemp("run")
    config = write_config(root, folder)
    options = [f"data_root={root}", "crop_size=28", "max_iters=3", "randomness.seed=0"]
    options += ["default_hooks.checkpoint.interval=1", "default_hooks.checkpoint.max_keep_ckpts=3"]
    run(TRAIN, config, "--work-dir", folder / "work", "--amp", "--cfg-options", *options)
    second = folder / "work/iter_2.pth"
    run(TRAIN, config, "--work-dir", folder / "again", "--amp", "--resume", second, "--cfg-options", *options)
    return folder


def test_what_trains_changed_alone_and_resuming_is_exact(trained: Path) -> None:
    log = log_of(trained / "work")
    assert "train_dataloader: images of each of 3 classes: dark 4, light 4, red 4" in log
    assert "val_dataloader: 6 of 6 samples read and found in order" in log and "accuracy/top1" in log
    whole = trained / "work/iter_3.pth"
    assert_same_checkpoint(trained / "again/iter_3.pth", whole, ("state_dict", "optimizer", "param_schedulers"))
    before, after = (read_checkpoint(str(trained / f"work/iter_{i}.pth"))["state_dict"] for i in (1, 3))
    assert after["head.fc.weight"].shape == (3, 64)
    changed = set(changed_rows(before, after))
    assert changed and all(".attn.proj." in key or key.startswith("head.") for key in changed)


def predictions(config: Path, checkpoint: Path, root: Path, folder: Path) -> dict[str, np.ndarray]:
    out = folder / "predictions.pkl"
    options = [f"data_root={root}", "crop_size=28"]
    run(TEST, config, checkpoint, "--work-dir", folder, "--out", out, "--cfg-options", *options)
    return {Path(one["img_path"]).as_posix(): one["pred_score"].numpy() for one in np.load(out, allow_pickle=True)}


def test_a_delta_predicts_as_the_checkpoint_does_and_both_as_plain_torch(
    trained: Path, root: Path, tmp_path: Path
) -> None:
    config, whole = trained / "config.py", trained / "work/iter_3.pth"
    found = predictions(config, whole, root, tmp_path / "whole")
    delta = tmp_path / "extracted.delta.safetensors"
    call_tool(CONVERTERS / "extract_delta.py", whole, trained / "base.pth", delta, "--base-prefix", "backbone.vit.")
    by_delta = predictions(config, delta, root, tmp_path / "delta")
    assert found.keys() == by_delta.keys() and len(found) == 6
    for image, scores in found.items():
        np.testing.assert_array_equal(by_delta[image], scores)

    # timm's features and a linear layer, of the images as the pipeline gives them
    cfg = Config.fromfile(config)
    state = read_checkpoint(str(whole))["state_dict"]
    kwargs = dict(cfg.model.backbone.model_kwargs)
    vit = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=28, **kwargs).eval()
    prefix = "backbone.vit."
    vit.load_state_dict({k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})
    steps = cfg.test_dataloader.dataset.pipeline
    steps[1].scale, steps[2].crop_size = 32, 28
    with DefaultScope.overwrite_default_scope("mmpretrain"), torch.no_grad():
        dataset = DATASETS.build(dict(cfg.test_dataloader.dataset, data_root=str(root)))
        for i in range(len(dataset)):
            rgb = dataset[i]["inputs"].flip(0).float()
            mean, std = (torch.tensor(cfg.model.data_preprocessor[key]).view(3, 1, 1) for key in ("mean", "std"))
            tokens = vit.forward_features(((rgb - mean) / std)[None])
            features = torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], 1)
            logits = features @ state["head.fc.weight"].T + state["head.fc.bias"]
            image = Path(dataset[i]["data_samples"].img_path).as_posix()
            np.testing.assert_allclose(found[image], logits.softmax(1)[0].numpy(), rtol=1e-4, atol=1e-5)


def test_merging_gives_the_checkpoints_weights(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    delta, whole = trained / "work/iter_3.delta.safetensors", trained / "work/iter_3.pth"
    call_tool(CONVERTERS / "info.py", delta)
    assert "classes" in (told := capsys.readouterr().out) and "3: dark, light, red" in told
    call_tool(CONVERTERS / "merge_delta.py", delta, tmp_path / "merged.pth")
    merged = read_checkpoint(str(tmp_path / "merged.pth"))
    assert_same(merged.get("state_dict", merged), read_checkpoint(str(whole))["state_dict"])


def test_knn_of_pretrained_and_adapted_features(trained: Path, root: Path, tmp_path: Path) -> None:
    options = ["--k", 1, 3, "--cfg-options", f"data_root={root}", "crop_size=28"]
    base = run(KNN, trained / "config.py", "--work-dir", tmp_path / "base", *options)
    own = run(KNN, trained / "config.py", trained / "work/iter_3.pth", "--work-dir", tmp_path / "own", *options)
    for done in (base, own):
        assert "knn/top1_k1 100.00" in done.stdout and "knn/top1_k3 100.00" in done.stdout  # colours tell them apart
    few = run(KNN, trained / "config.py", "--work-dir", tmp_path / "few", "--k", 20, *options[3:], returncode=1)
    assert "k=20 must be from 1 to the 12 training images" in few.output


def test_images_without_labels_are_predicted(trained: Path, root: Path, tmp_path: Path) -> None:
    (tmp_path / "images/deep").mkdir(parents=True)
    shutil.copy(root / "val/red/0.jpg", tmp_path / "images/deep/a.JPG")
    out = tmp_path / "found.pkl"
    options = [f"data_root={root}", "crop_size=28"]
    command = [TEST, trained / "config.py", trained / "work/iter_3.pth", "--work-dir", tmp_path / "work"]
    run(*command, "--images", tmp_path / "images", "--out", out, "--cfg-options", *options)
    (found,) = np.load(out, allow_pickle=True)
    assert found["img_path"].endswith("deep/a.JPG") and found["pred_score"].shape == (3,)
    wrong = run(*command, "--out", tmp_path / "folder", "--cfg-options", *options, returncode=1)
    assert "--out of a config of mmpretrain must be a .pkl file" in wrong.output


def test_folders_of_other_names_are_not_those_of_the_checkpoint(trained: Path, root: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(root / "val", other / "val")
    (other / "val/red").rename(other / "val/rot")
    options = [f"data_root={other}", "crop_size=28"]
    command = [TEST, trained / "config.py", trained / "work/iter_3.pth", "--work-dir", tmp_path / "work"]
    done = run(*command, "--cfg-options", *options, returncode=1)
    assert "the classes are 'dark', 'light', 'rot', and those of the checkpoint 'dark', 'light', 'red'" in done.output
