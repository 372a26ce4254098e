import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from apla_mm.engine.command_line import build_runner
from apla_mm.engine.data_check import DataError
from apla_mm.engine.hooks import DataCheckHook


def set_labels(path: Path, *shape: int, value: int = 0, dtype: type = np.uint8) -> None:
    Image.fromarray(np.full(shape, value, dtype)).save(path)


def test_data_in_order_are_logged_and_trained_on(segmentation_config: Config, read_log: Callable[[], str]) -> None:
    build_runner(segmentation_config).train()
    log = read_log()
    assert "train_dataloader: 3 of 3 samples read and found in order\n" in log
    assert "val_dataloader: 2 of 2 samples read and found in order\n" in log
    assert log.index("val_dataloader:") < log.index("Iter(val)") and "mIoU:" in log


def test_training_without_validation_checks_the_training_data(
    segmentation_config: Config, read_log: Callable[[], str]
) -> None:
    segmentation_config.update(val_dataloader=None, val_cfg=None, val_evaluator=None)
    build_runner(segmentation_config).train()
    assert "train_dataloader: 3 of 3" in read_log() and "val_dataloader: " not in read_log()


def test_testing_checks_the_test_data_alone(segmentation_config: Config, read_log: Callable[[], str]) -> None:
    build_runner(segmentation_config).test()
    assert "test_dataloader: 2 of 2" in read_log() and "train_dataloader: " not in read_log()


def test_label_map_not_in_order_stops_training_before_it_starts(
    segmentation_config: Config, data_root: Path, read_log: Callable[[], str]
) -> None:
    path = data_root / "annotations/training/scene_1.png"
    set_labels(path, 40, 48, value=2)
    with pytest.raises(DataError, match=rf"'{path}' holds the labels \[2\]"):
        build_runner(segmentation_config).train()
    assert "Iter(train)" not in read_log()


@pytest.mark.parametrize("folder", ["images/training", "images/validation"])
def test_empty_folder_is_an_error_that_names_it(segmentation_config: Config, data_root: Path, folder: str) -> None:
    shutil.rmtree(data_root / folder)
    (data_root / folder).mkdir()
    with pytest.raises(DataError, match=rf"{data_root}/{folder}' is empty: expected files"):
        build_runner(segmentation_config).train()


def test_missing_folder_is_named_before_a_runner_is_built(segmentation_config: Config, data_root: Path) -> None:
    (data_root / "annotations/training").rename(data_root / "moved")
    with pytest.raises(DataError, match=rf"data_prefix\.seg_map_path '{data_root}/annotations/training' does not"):
        build_runner(segmentation_config)


def test_data_of_another_kind_are_let_through(
    tiny_classifier: object, make_runner: Callable[..., Runner], read_log: Callable[[], str]
) -> None:
    make_runner(tiny_classifier, custom_hooks=[DataCheckHook()]).train()
    assert "Iter(train) [2/2]" in read_log() and "samples read" not in read_log()


@pytest.fixture(scope="module")
def built(
    tmp_path_factory: pytest.TempPathFactory,
    make_data_set: Callable[[Path], Path],
    make_segmentation_config: Callable[[Path, Path], Config],
) -> tuple[Path, Runner]:
    """A Runner whose loops are built and do not run, and its data set."""
    folder = tmp_path_factory.mktemp("built")
    root = make_data_set(folder / "scenes")
    runner = build_runner(make_segmentation_config(root, folder / "work"))
    assert len(runner.train_loop.dataloader.dataset) == 3 and len(runner.val_loop.dataloader.dataset) == 2
    assert len(runner.test_loop.dataloader.dataset) == 2
    return root, runner


@pytest.fixture
def root(built: tuple[Path, Runner], make_data_set: Callable[[Path], Path]) -> Path:
    return make_data_set(built[0])


@pytest.fixture
def runner(built: tuple[Path, Runner]) -> Runner:
    return built[1]


@pytest.mark.parametrize(
    ("kind", "spoil", "expected"),
    [
        pytest.param("images", Path.unlink, r"is missing; '.*scene_1\.jpg' needs it", id="no picture"),
        pytest.param("annotations", Path.unlink, r"is missing; '.*scene_1\.jpg' needs it", id="no label map"),
        pytest.param("images", lambda p: p.write_bytes(p.read_bytes()[:99]), "cannot be read: ", id="truncated"),
        pytest.param("annotations", lambda p: set_labels(p, 40, 48, value=2), r"\[2\]: expected 0 to 1", id="unknown"),
        pytest.param(
            "annotations",
            lambda p: set_labels(p, 40, 48, value=300, dtype=np.uint16),
            r"\[300\]: expected 0 to 1",
            id="16-bit",
        ),
        pytest.param("annotations", lambda p: set_labels(p, 40, 48, 3), "3 channels: expected one", id="colour"),
        pytest.param("annotations", lambda p: set_labels(p, 48, 40), "is 40 x 48 and .* 48 x 40", id="size"),
    ],
)
@pytest.mark.parametrize(("split", "before"), [("training", "train"), ("validation", "train"), ("validation", "test")])
def test_file_not_in_order_is_named_with_what_was_expected(
    root: Path, runner: Runner, split: str, before: str, kind: str, spoil: Callable[[Path], object], expected: str
) -> None:
    hook = DataCheckHook()
    getattr(hook, f"before_{before}")(runner)
    (path,) = (root / kind / split).glob("scene_1.*")
    spoil(path)
    with pytest.raises(DataError, match=rf"'{path}' .*{expected}"):
        getattr(hook, f"before_{before}")(runner)


@pytest.mark.parametrize("reduce_zero_label", [False, True])
def test_labels_are_judged_with_the_data_sets_own_reduce_zero_label(
    segmentation_config: Config, data_root: Path, reduce_zero_label: bool
) -> None:
    segmentation_config.test_dataloader.dataset.reduce_zero_label = reduce_zero_label
    set_labels(data_root / "annotations/validation/scene_1.png", 40, 48, value=2)
    runner = build_runner(segmentation_config)
    assert len(runner.test_loop.dataloader) == 1
    if reduce_zero_label:
        DataCheckHook().before_test(runner)
    else:
        with pytest.raises(DataError, match=r"scene_1\.png' holds the labels \[2\]"):
            DataCheckHook().before_test(runner)


@pytest.mark.parametrize("head", ["decode_head", "auxiliary_head.1"])
@pytest.mark.parametrize("task", ["train", "test"])
def test_head_built_for_another_number_of_classes_is_named(
    root: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch, head: str, task: str
) -> None:
    monkeypatch.setattr(runner.model.get_submodule(head), "num_classes", 7)
    expected = rf"^{task}_dataloader: the data set has 2 classes and '{head}' was built for 7: set num_classes"
    with pytest.raises(DataError, match=expected):
        getattr(DataCheckHook(), f"before_{task}")(runner)


def test_time_limit_is_kept_and_the_log_says_how_far_it_came(
    segmentation_config: Config, data_root: Path, read_log: Callable[[], str]
) -> None:
    set_labels(data_root / "annotations/validation/scene_1.png", 40, 48, value=99)
    runner = build_runner(segmentation_config)
    assert len(runner.test_loop.dataloader) == 1
    DataCheckHook(time_limit=0.0).before_test(runner)
    log = read_log()
    assert "test_dataloader: 0 of 2 samples read and found in order in 0 s; DataCheckHook(time_limit=None)" in log
    with pytest.raises(DataError, match=r"\[99\]"):
        DataCheckHook(time_limit=None).before_test(runner)
