import json
import os
import re
import shlex
import shutil
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace

import mmseg
import numpy as np
import pytest
import timm
import torch
from filelock import FileLock
from helpers import ROOT, small_run
from helpers.comparisons import changed_rows
from helpers.data_sets import write_photos
from helpers.logs import scalars_of
from helpers.small_run import CONFIG, TEST, TRAIN, VIT, run_small
from helpers.tools import call_tool
from mmengine.config import Config
from mmengine.registry import OPTIM_WRAPPERS
from PIL import Image

from apla_mm.commands import test as test_command
from apla_mm.commands import train as train_command
from apla_mm.loading.checkpoint_reader import read_checkpoint
from apla_mm.options.mixed_precision import enable_mixed_precision

pytestmark = pytest.mark.slow

STOCK_TRAIN, STOCK_TEST = (Path(mmseg.__file__).parent / f".mim/tools/{name}.py" for name in ("train", "test"))


miou = partial(small_run.miou, each=4)


def losses(work_dir: Path) -> list[float]:
    return [line["loss"] for line in scalars_of(work_dir) if "loss" in line]


def vit_of(checkpoint: Path) -> dict[str, torch.Tensor]:
    state = read_checkpoint(checkpoint)["state_dict"]
    prefix = "backbone.vit."
    return {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the data set `data` and one training run `trained`, made once for all of pytest's workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "train_and_test"
    with FileLock(f"{folder}.lock"):
        if not (folder / "trained/output.txt").exists():
            shutil.rmtree(folder, ignore_errors=True)
            data = f"data_root={write_photos(folder / 'data')}"
            output = run_small(TRAIN, CONFIG, "--work-dir", folder / "trained", options=[data])
            (folder / "trained/output.txt").write_text(output)
    return folder


@pytest.fixture(scope="session")
def data(shared: Path) -> str:
    return f"data_root={shared / 'data'}"


@pytest.fixture(scope="session")
def trained(shared: Path) -> Path:
    return shared / "trained"


@pytest.fixture
def copy_of_trained(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "work"))


def test_training_checks_the_data_proves_the_first_step_and_scores(trained: Path) -> None:
    output = (trained / "output.txt").read_text()
    assert "train_dataloader: 8 of 8 samples read and found in order" in output
    assert re.search(r"first step: (\d+) of \1 trained tensors changed, 0 of \d+ frozen ones", output)
    assert re.findall(r"Iter\(train\) \[(\d)/4\]", output) == ["1", "2", "3", "4"]
    assert 0 < miou(output) < 100
    assert {path.name for path in trained.glob("*.pth")} == {"iter_2.pth", "iter_4.pth", "best_mIoU_iter_4.pth"}


def test_trained_backbone_loads_into_the_plain_timm_model(trained: Path) -> None:
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=(64, 64), dynamic_img_size=True, **VIT)
    plain.load_state_dict(vit_of(trained / "iter_4.pth"), strict=True)


def test_only_the_chosen_channels_of_the_backbone_differ_between_checkpoints(trained: Path) -> None:
    moved = changed_rows(vit_of(trained / "iter_2.pth"), vit_of(trained / "iter_4.pth"))
    assert {key: len(rows) for key, rows in moved.items()} == {
        f"blocks.{i}.attn.proj.{kind}": 8 for i in range(4) for kind in ("weight", "bias")
    }


def test_config_written_beside_the_checkpoints_is_the_one_that_was_run(trained: Path, data: str) -> None:
    cfg = Config.fromfile(trained / "apla_vitb_custom.py")
    assert cfg.train_dataloader.dataset.data_root == data.removeprefix("data_root=")
    assert tuple(cfg.val_dataloader.dataset.metainfo.classes) == ("dark", "bright")


def test_test_gives_validations_score_and_writes_predictions_and_drawings(
    trained: Path, data: str, tmp_path: Path
) -> None:
    out, drawn = tmp_path / "out", tmp_path / "drawn"
    arguments = (CONFIG, trained / "iter_4.pth", "--work-dir", tmp_path / "work", "--out", out, "--show-dir", drawn)
    output = run_small(TEST, *arguments, options=[data])
    assert miou(output) == miou((trained / "output.txt").read_text())
    predictions = {path.name: np.asarray(Image.open(path)) for path in out.glob("*.png")}
    assert set(predictions) == {f"0_{j}.png" for j in range(4)}
    assert all(p.shape == (64, 72) and set(np.unique(p)) <= {0, 1} for p in predictions.values())
    truth = {
        name: np.asarray(Image.open(trained.parent / "data/annotations/validation" / name)) for name in predictions
    }
    ious = [
        sum(((predictions[n] == c) & (truth[n] == c)).sum() for n in truth)
        / sum((((predictions[n] == c) | (truth[n] == c)) & (truth[n] != 255)).sum() for n in truth)
        for c in (0, 1)
    ]
    assert 100 * np.mean(ious) == pytest.approx(miou(output), abs=0.01)
    drawings = list(drawn.rglob("*.png"))
    assert len(drawings) == 4 and all(Image.open(path).size[1] == 64 for path in drawings)


def test_tta_scores_with_all_its_scales_and_flips(trained: Path, data: str, tmp_path: Path) -> None:
    arguments = (CONFIG, trained / "iter_4.pth", "--work-dir", tmp_path, "--tta")
    output = run_small(TEST, *arguments, options=[data])
    assert 0 < miou(output) < 100
    (log,) = tmp_path.glob("*/*.json")
    assert json.loads(log.read_text())["mIoU"] == pytest.approx(miou(output), abs=1e-4)
    (config,) = tmp_path.glob("*/vis_data/config.py")
    written = Config.fromfile(config)
    assert (written.model.type, written.model.module.type) == ("SegTTAModel", "EncoderDecoder")
    scales, flips = written.test_dataloader.dataset.pipeline[1].transforms[:2]
    assert len(scales) == 6 and len(flips) == 2


def test_resume_goes_on_from_the_latest_checkpoint(copy_of_trained: Path, data: str) -> None:
    longer = [data, "train_cfg.max_iters=6", "train_cfg.val_interval=6"]
    output = run_small(TRAIN, CONFIG, "--work-dir", copy_of_trained, "--resume", options=longer)
    assert re.findall(r"Iter\(train\) \[(\d)/6\]", output) == ["5", "6"]
    before, after = (read_checkpoint(copy_of_trained / f"iter_{i}.pth") for i in (4, 6))
    assert after["meta"]["iter"] == 6
    assert {s["step"].item() for s in before["optimizer"]["state"].values()} == {4}
    assert {s["step"].item() for s in after["optimizer"]["state"].values()} == {6}
    frozen = "backbone.vit.blocks.0.mlp.fc1.weight"
    assert torch.equal(before["state_dict"][frozen], after["state_dict"][frozen])


def test_resume_with_a_path_goes_on_from_there(trained: Path, data: str, tmp_path: Path) -> None:
    output = run_small(TRAIN, CONFIG, "--work-dir", tmp_path, "--resume", trained / "iter_2.pth", options=[data])
    assert re.findall(r"Iter\(train\) \[(\d)/4\]", output) == ["3", "4"]
    assert re.search(r"first step: (\d+) of \1 trained tensors changed, 0 of \d+ frozen ones", output)
    assert read_checkpoint(tmp_path / "iter_4.pth")["meta"]["iter"] == 4


def test_amp_trains_with_float32_weights_and_nearly_the_same_losses(trained: Path, data: str, tmp_path: Path) -> None:
    output = run_small(TRAIN, CONFIG, "--work-dir", tmp_path, "--amp", options=[data])
    assert re.search(r"first step: \d+ of \d+ trained tensors changed, 0 of \d+ frozen ones", output)
    assert {tensor.dtype for tensor in vit_of(tmp_path / "iter_4.pth").values()} == {torch.float32}
    without, with_amp = (losses(work_dir) for work_dir in (trained, tmp_path))
    assert with_amp != without
    assert with_amp[0] == pytest.approx(without[0], rel=0.03)


@pytest.fixture
def stock_options(data: str) -> list[str]:
    """For mmseg's own tools, which know nothing of the shared options; 0, 1 are named background, object there."""
    assert f"{ROOT}" not in str(STOCK_TRAIN.relative_to(Path(mmseg.__file__).parent))
    return [
        *(f"{split}_dataloader.dataset.{data}" for split in ("train", "val", "test")),
        *("model.data_preprocessor.size=(64,64)", "model.backbone.img_size=(64,64)"),
        *("model.test_cfg.crop_size=(64,64)", "model.test_cfg.stride=(42,42)"),
        "train_dataloader.dataset.pipeline.3.crop_size=(64,64)",
        *(
            f"{split}_dataloader.dataset.pipeline.{i}.scale=(256,64)"
            for split, i in (("train", 2), ("val", 1), ("test", 1))
        ),
    ]


def test_stock_tools_of_mmseg_train_the_same_config(stock_options: list[str], trained: Path, tmp_path: Path) -> None:
    output = run_small(STOCK_TRAIN, CONFIG, "--work-dir", tmp_path, options=stock_options)
    assert re.findall(r"Iter\(train\) \[(\d)/4\]", output) == ["1", "2", "3", "4"]
    assert re.search(r"first step: (\d+) of \1 trained tensors changed", output)
    assert {key: tensor.shape for key, tensor in vit_of(tmp_path / "iter_4.pth").items()} == {
        key: tensor.shape for key, tensor in vit_of(trained / "iter_4.pth").items()
    }


def test_stock_tools_of_mmseg_test_the_same_config(stock_options: list[str], trained: Path, tmp_path: Path) -> None:
    output = run_small(STOCK_TEST, CONFIG, trained / "iter_4.pth", "--work-dir", tmp_path, options=stock_options)
    assert miou(output) == miou((trained / "output.txt").read_text())


def test_stock_tools_of_mmseg_resume_the_same_config(stock_options: list[str], copy_of_trained: Path) -> None:
    longer = [*stock_options, "train_cfg.max_iters=6", "train_cfg.val_interval=6"]
    longer += ["train_dataloader.dataset.metainfo.classes=dark,bright"]  # other names would be another run's
    output = run_small(STOCK_TRAIN, CONFIG, "--work-dir", copy_of_trained, "--resume", options=longer)
    assert re.findall(r"Iter\(train\) \[(\d)/6\]", output) == ["5", "6"]
    assert read_checkpoint(copy_of_trained / "iter_6.pth")["meta"]["iter"] == 6


def test_wrong_data_root_fails_before_a_runner_is_built_and_names_the_folder(tmp_path: Path) -> None:
    options = [f"data_root={tmp_path}/nowhere"]
    output = run_small(TRAIN, CONFIG, "--work-dir", tmp_path / "work", options=options, returncode=1)
    last = output.strip().splitlines()[-1]
    assert f"'{tmp_path}/nowhere/images/training' does not exist" in last and "data_root=FOLDER" in last
    assert not (tmp_path / "work").exists()


class RunsACommand:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"echo > '{self.marker}'",)


def test_harmful_checkpoint_is_refused_and_runs_nothing(trained: Path, data: str, tmp_path: Path) -> None:
    checkpoint = read_checkpoint(trained / "iter_4.pth")
    torch.save({**checkpoint, "extra": RunsACommand(tmp_path / "marker")}, tmp_path / "harmful.pth")
    output = run_small(
        TEST, CONFIG, tmp_path / "harmful.pth", "--work-dir", tmp_path / "work", options=[data], returncode=1
    )
    assert f"'{tmp_path}/harmful.pth' cannot be read: it would run 'posix.system'" in output
    assert not (tmp_path / "marker").exists() and "Iter(test)" not in output


@pytest.mark.parametrize(
    ("saved", "flags", "expected"),
    [
        (False, [], (False, "begin.pth")),
        (False, ["--resume"], (False, "begin.pth")),  # a job that will be put back begins where the config says
        (True, ["--resume"], (True, None)),
        (True, [], (False, "begin.pth")),
        (True, ["--resume", "this.pth"], (True, "this.pth")),
    ],
)
def test_what_training_goes_on_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, saved: bool, flags: list[str], expected: tuple[bool, str | None]
) -> None:
    if saved:
        (tmp_path / "last_checkpoint").write_text(str(tmp_path / "iter_2.pth"))
    found: list[Config] = []
    ends_at_once = SimpleNamespace(train=lambda: None)
    monkeypatch.setattr(train_command, "build_runner", lambda cfg, loaders: found.append(cfg) or ends_at_once)
    begin = ["--cfg-options", "load_from=begin.pth"]
    monkeypatch.setenv("LOCAL_RANK", "0")
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    train_command.main([str(CONFIG), *flags, "--work-dir", str(tmp_path), *begin])
    assert (found[0].resume, found[0].load_from) == expected


@pytest.mark.parametrize(
    "wrapper",
    [
        dict(type="OptimWrapper", clip_grad=dict(max_norm=1.0), accumulative_counts=2),
        dict(type="AmpOptimWrapper"),
        dict(type="AmpOptimWrapper", dtype="bfloat16"),
        dict(type="AmpOptimWrapper", dtype="float16", loss_scale="dynamic"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="the dtype depends on the device there")
def test_amp_makes_a_wrapper_that_computes_in_bfloat16_of_what_the_config_says(wrapper: dict) -> None:
    cfg = Config(dict(optim_wrapper=wrapper))
    enable_mixed_precision(cfg)
    model = torch.nn.Linear(2, 2)
    built = OPTIM_WRAPPERS.build({**cfg.optim_wrapper, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    with built.optim_context(model):
        assert model(torch.ones(1, 2)).dtype == torch.bfloat16
    assert built.clip_grad_kwargs == wrapper.get("clip_grad")
    assert built._accumulative_counts == wrapper.get("accumulative_counts", 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the dtype depends on the device there")
def test_amp_of_a_detector_leaves_its_heads_in_float32() -> None:
    cfg = Config(dict(default_scope="mmdet", optim_wrapper=dict(type="OptimWrapper")))
    enable_mixed_precision(cfg)
    model = torch.nn.ModuleDict({name: torch.nn.Linear(2, 2) for name in ("backbone", "neck", "rpn_head")})
    built = OPTIM_WRAPPERS.build({**cfg.optim_wrapper, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1)})
    x = torch.tensor([[0.1234567, 0.7654321]])
    with built.optim_context(model):
        inside = {name: part(x) for name, part in model.items()}
    for name, part in model.items():
        assert torch.equal(inside[name], part(x)) is (name == "rpn_head") and inside[name].dtype == torch.float32


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        (
            train_command,
            ["--amp"],
            "--amp: mixed precision needs an optim_wrapper of type OptimWrapper, and it is ApexOptimWrapper",
        ),
        (train_command, ["--auto-scale-lr"], r"--auto-scale-lr needs auto_scale_lr=dict\(base_batch_size"),
        (test_command, ["c.pth", "--tta"], "--tta needs tta_model and tta_pipeline"),
        (test_command, ["c.pth", "--show-dir", "d"], r"--show-dir need default_hooks\.visualization"),
        (train_command, ["--cfg-options", "max_iters=0"], "max_iters=0 must be"),
        (train_command, ["--cfg-options", "classes=a,,b"], "must be names"),
    ],
)
def test_flag_that_the_config_cannot_serve_is_an_error(
    command: ModuleType, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    bare = tmp_path / "bare.py"
    bare.write_text(
        'model = dict()\noptim_wrapper = dict(type="ApexOptimWrapper")\ndefault_hooks = dict()\ntrain_cfg = dict()\n'
    )
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")  # the tools set both: put them back afterwards
    monkeypatch.setenv("LOCAL_RANK", "0")
    with pytest.raises((SystemExit, ValueError), match=message):
        command.main([str(bare), *arguments])


@pytest.fixture
def videos(data: str, tmp_path: Path) -> Path:
    """The data set, with its images of validation in two folders, under the same names in each."""
    root = Path(shutil.copytree(data.removeprefix("data_root="), tmp_path / "videos"))
    for kind in ("images", "annotations"):
        folder = root / kind / "validation"
        for i, path in enumerate(sorted(folder.iterdir())):
            target = folder / f"video_{'ab'[i % 2]}" / f"s{i // 2}{path.suffix}"
            target.parent.mkdir(exist_ok=True)
            path.rename(target)
    return root


FOUR = {f"video_{name}/s{i}.png" for name in "ab" for i in (0, 1)}


def label_maps(folder: Path) -> dict[str, np.ndarray]:
    return {str(path.relative_to(folder)): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def test_predictions_lie_in_folders_as_their_images_do(trained: Path, videos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = (CONFIG, trained / "iter_4.pth", "--work-dir", tmp_path / "work", "--out", out)
    output = run_small(TEST, *arguments, options=[f"data_root={videos}"])
    found = label_maps(out)
    assert found.keys() == FOUR
    truth = label_maps(videos / "annotations/validation")
    right = [(found[name] == truth[name])[truth[name] != 255] for name in FOUR]
    accuracy = re.findall(r"aAcc: ([\d.]+)", output)[-1]
    assert 100 * np.concatenate(right).mean() == pytest.approx(float(accuracy), abs=0.01)


@pytest.mark.parametrize("way", ["--images", "--unlabelled", "--tta"])
def test_images_without_labels_are_predicted(trained: Path, videos: Path, tmp_path: Path, way: str) -> None:
    labelled, out = tmp_path / "labelled", tmp_path / "out"
    tta = ["--tta"] if way == "--tta" else []
    arguments = (CONFIG, trained / "iter_4.pth", "--work-dir", tmp_path / "work", *tta, "--out")
    run_small(TEST, *arguments, labelled, options=[f"data_root={videos}"])
    shutil.rmtree(videos / "annotations")
    if way == "--unlabelled":
        output = run_small(TEST, *arguments, out, way, options=[f"data_root={videos}"])
    else:
        output = run_small(TEST, *arguments, out, "--images", videos / "images/validation", options=[])
    assert "mIoU: " not in output
    expected, found = label_maps(labelled), label_maps(out)
    assert found.keys() == expected.keys() == FOUR
    assert all(np.array_equal(found[name], expected[name]) for name in FOUR)


def test_images_of_one_name_and_several_kinds_are_not_written_over_each_other(
    trained: Path, videos: Path, tmp_path: Path
) -> None:
    images = videos / "images/validation"
    Image.open(images / "video_a/s0.jpg").save(images / "video_a/s0.PNG")
    arguments = (CONFIG, trained / "iter_4.pth", "--out", tmp_path / "out", "--images", images)
    output = run_small(TEST, *arguments, "--work-dir", tmp_path / "work", options=[], returncode=1)
    assert re.search(
        r"predictions for '\S+/video_a/s0\.(PNG|jpg)' and '\S+/video_a/s0\.(PNG|jpg)' would be one", output
    )
    assert not list(tmp_path.rglob("out/**/*.png"))


@pytest.mark.parametrize(("images", "message"), [("nowhere", "is no folder"), ("empty", "holds no images")])
def test_folder_without_images_is_an_error(tmp_path: Path, images: str, message: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        call_tool(TEST, CONFIG, "c.pth", "--out", tmp_path / "out", "--images", tmp_path / images)


@pytest.mark.parametrize("flag", [["--unlabelled"], ["--images", "folder"]])
def test_predictions_without_scores_have_to_go_somewhere(flag: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        call_tool(TEST, CONFIG, "c.pth", *flag)
    assert "give --out, --show or --show-dir" in capsys.readouterr().err


def test_settings_that_do_not_agree_end_a_run_before_it_trains(data: str, tmp_path: Path) -> None:
    options = [data, "val_evaluator.iou_metrics=[mDice]", "model.decode_head.in_channels=33"]
    output = run_small(TRAIN, CONFIG, "--work-dir", tmp_path / "work", options=options, returncode=1)
    assert "2 settings do not agree with others" in output and "Iter(train)" not in output
    assert f"{SAVE_BEST}: 'mIoU' is none of the scores of val_evaluator: mDice, mAcc, aAcc" in output
    assert "--cfg-options model.decode_head.in_channels=32" in output
    cures = [shlex.split(found)[0] for found in re.findall(r"--cfg-options (\S+?)(?:;|$)", output, re.M)]
    done = run_small(TRAIN, CONFIG, "--work-dir", tmp_path / "work", options=[*options, *cures])
    assert "best_mDice_iter_4.pth" in done


SAVE_BEST = "default_hooks.checkpoint.save_best"


def test_unusual_settings_are_told_in_the_log(data: str, tmp_path: Path) -> None:
    options = [data, "model.data_preprocessor.bgr_to_rgb=False", "param_scheduler.1.end=100"]
    options += ["model.data_preprocessor.mean=[123.675,116.28,103.53]"]
    output = run_small(TRAIN, CONFIG, "--work-dir", tmp_path / "work", options=options)
    assert "param_scheduler.1.end: PolyLR ends at iteration 100, and training at 4 (train_cfg.max_iters)" in output
    assert "model.data_preprocessor.bgr_to_rgb: False, and mean=(123.675, 116.28, 103.53) is in the order" in output
    assert "Iter(train) [4/4]" in output


def test_paths_and_names_are_taken_as_they_are_typed(data: str, trained: Path, tmp_path: Path) -> None:
    root, work = tmp_path / "my  data (1), [a]='x'", tmp_path / "007 (2)"
    root.symlink_to(data.removeprefix("data_root="))
    options = [f"data_root={root}", "classes=cell (live),cell - dead"]
    output = run_small(TEST, CONFIG, trained / "iter_4.pth", "--work-dir", work, options=options)
    assert "| cell (live) |" in re.sub(" +", " ", output) and "| cell - dead |" in re.sub(" +", " ", output)
    (config,) = work.glob("*/vis_data/config.py")
    assert Config.fromfile(config).test_dataloader.dataset.data_root == str(root)
