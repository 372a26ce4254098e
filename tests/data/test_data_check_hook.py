import argparse
import copy
import json
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import ROOT
from helpers.data_sets import edit_json, write_coco, write_panoptic, write_scenes
from helpers.processes import run_ranks
from helpers.small_configs import detection_config as config_of_detector
from helpers.small_configs import segmentation_config as config_of_segmentor
from helpers.small_configs import shrink
from mmengine.config import Config
from mmengine.runner import Runner
from PIL import Image

from apla_mm.data.data_check_hook import DataCheckHook
from apla_mm.data.reading import DataError
from apla_mm.options.command_line import build_runner, load_config

pytestmark = pytest.mark.slow

PANOPTIC = ROOT / "configs/det/eomt_dinov2-l14_apla_8xb2-90k_coco-panoptic-644x644.py"


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
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Runner]:
    """A Runner whose loops are built and do not run, and its data set."""
    folder = tmp_path_factory.mktemp("built")
    root = write_scenes(folder / "scenes")
    runner = build_runner(config_of_segmentor(root, folder / "work"))
    assert len(runner.train_loop.dataloader.dataset) == 3 and len(runner.val_loop.dataloader.dataset) == 2
    assert len(runner.test_loop.dataloader.dataset) == 2
    return root, runner


@pytest.fixture
def root(built: tuple[Path, Runner]) -> Path:
    return write_scenes(built[0])


@pytest.fixture
def runner(built: tuple[Path, Runner]) -> Runner:
    return built[1]


@pytest.mark.parametrize(
    ("kind", "spoil", "expected"),
    [
        pytest.param("images", Path.unlink, r"is missing; '.*scene_1\.jpg' needs it", id="no image"),
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


SPLITS = [("train", 1, "train"), ("val", 4, "train"), ("val", 4, "test")]


def add_box(content: dict, *box: float) -> None:
    content["annotations"].append(dict(content["annotations"][0], id=999, bbox=box))


def test_coco_data_in_order_are_logged_once_and_trained_on(
    detection_config: Config, coco_root: Path, read_log: Callable[[], str]
) -> None:
    build_runner(detection_config).train()
    log = read_log()
    for name, split, images, annotations in (("train_dataloader", "train", 4, 9), ("val_dataloader", "val", 2, 4)):
        path = coco_root / f"annotations/instances_{split}.json"
        said = f"{name}: '{path}': {images} images and {annotations} annotations in order\n"
        assert log.count(said) == 1
        assert f"{name}: {images} of {images} samples read and found in order\n" in log
        assert log.index(said) < log.index("what trains:")
    assert "coco/bbox_mAP:" in log


@pytest.fixture(scope="module")
def built_detector(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Runner]:
    """A Runner of a detector whose loops are built and do not run, and its data set."""
    folder = tmp_path_factory.mktemp("built_detector")
    root = write_coco(folder / "shapes")
    runner = build_runner(config_of_detector(root, folder / "work"))
    assert len(runner.train_loop.dataloader.dataset) == 4 and len(runner.val_loop.dataloader.dataset) == 2
    assert len(runner.test_loop.dataloader.dataset) == 2
    return root, runner


@pytest.fixture
def shapes(built_detector: tuple[Path, Runner]) -> Path:
    return write_coco(built_detector[0])


@pytest.fixture
def detector(built_detector: tuple[Path, Runner]) -> Runner:
    return built_detector[1]


@pytest.fixture
def cfg(detector: Runner, monkeypatch: pytest.MonkeyPatch) -> Config:
    """The detector's config, to be changed."""
    monkeypatch.setattr(detector, "cfg", copy.deepcopy(detector.cfg))
    return detector.cfg


TRAINING = ("train_dataloader", "val_dataloader")
TESTING = ("test_dataloader",)


@pytest.mark.parametrize(("loaders", "split"), [(TRAINING, "train"), (TRAINING, "val"), (TESTING, "val")])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param(lambda c: add_box(c, 1, 2, 3), "annotation 999 in .* has the box", id="box of three numbers"),
        pytest.param(lambda c: c["annotations"].clear(), "has no object of the classes square, disc", id="nothing"),
        pytest.param(lambda c: c["annotations"][0].pop("segmentation"), "has no segmentation", id="no mask"),
    ],
)
def test_annotation_file_is_checked_while_there_is_no_data_set(
    shapes: Path,
    detector: Runner,
    loaders: tuple[str, ...],
    split: str,
    change: Callable[[dict], object],
    expected: str,
) -> None:
    DataCheckHook().check_annotation_files(detector, loaders)
    path = shapes / f"annotations/instances_{split}.json"
    edit_json(path, change)
    with pytest.raises(DataError, match=rf"'{path}'.* {expected}"):
        DataCheckHook().check_annotation_files(detector, loaders)


def test_tools_check_the_files_before_mmdet_fails_of_them(
    detection_config: Config, coco_root: Path, read_log: Callable[[], str]
) -> None:
    edit_json(coco_root / "annotations/instances_train.json", lambda content: content["annotations"].clear())
    with pytest.raises(DataError, match=r"instances_train\.json' has no object of the classes square, disc"):
        build_runner(detection_config, TRAINING)
    (coco_root / "annotations/instances_train.json").unlink()
    build_runner(detection_config, TESTING)
    assert "test_dataloader: " in read_log() and "train_dataloader: " not in read_log()


def test_masks_are_asked_for_by_pipelines_and_evaluators_alone(shapes: Path, detector: Runner, cfg: Config) -> None:
    for split in ("train", "val"):
        path = shapes / f"annotations/instances_{split}.json"
        edit_json(path, lambda content: [a.pop("segmentation") for a in content["annotations"]])
    for loader in TRAINING:
        for step in cfg[loader].dataset.pipeline:
            if "with_mask" in step:
                step.with_mask = False
    cfg.val_evaluator.metric = "bbox"
    DataCheckHook().check_annotation_files(detector, TRAINING)
    with pytest.raises(DataError, match=r"instances_val\.json': annotation 100 .* has no segmentation"):
        DataCheckHook().check_annotation_files(detector, TESTING)
    cfg.val_evaluator.metric = ["bbox", "segm"]
    with pytest.raises(DataError, match=r"instances_val\.json': annotation 100 .* has no segmentation"):
        DataCheckHook().check_annotation_files(detector, TRAINING)


def test_box_tolerance_is_an_option_of_the_hook(shapes: Path, detector: Runner) -> None:
    edit_json(shapes / "annotations/instances_train.json", lambda content: add_box(content, 60, 20, 10, 10))
    with pytest.raises(DataError, match="6.0 pixels outside its image"):
        DataCheckHook().check_annotation_files(detector, TRAINING)
    DataCheckHook(box_tolerance=6.0).check_annotation_files(detector, TRAINING)


def test_images_smaller_than_mmdet_keeps_are_an_error_in_training(shapes: Path, detector: Runner, cfg: Config) -> None:
    for loader in (*TRAINING, *TESTING):
        cfg[loader].dataset.filter_cfg = dict(min_size=49)
    DataCheckHook().check_annotation_files(detector, TESTING)
    with pytest.raises(DataError, match=r"of 4 images, 4 are smaller than filter_cfg\.min_size=49"):
        DataCheckHook().check_annotation_files(detector, TRAINING)


def test_evaluator_that_compares_with_another_file_is_an_error(shapes: Path, detector: Runner, cfg: Config) -> None:
    cfg.val_evaluator.ann_file = str(shapes / "annotations/instances_train.json")
    with pytest.raises(DataError, match="the evaluator compares with '.*instances_train.json', and .* other images"):
        DataCheckHook().check_annotation_files(detector, TRAINING)


def test_images_without_annotations_can_be_predicted_for_and_not_scored(
    shapes: Path, detector: Runner, cfg: Config
) -> None:
    edit_json(shapes / "annotations/instances_val.json", lambda content: content.pop("annotations"))
    with pytest.raises(DataError, match="has no list 'annotations'"):
        DataCheckHook().check_annotation_files(detector, TESTING)
    cfg.test_evaluator.update(format_only=True, outfile_prefix=str(shapes / "out"))
    DataCheckHook().check_annotation_files(detector, TESTING)


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(lambda inner: dict(type="RepeatDataset", times=3, dataset=inner), id="RepeatDataset"),
        pytest.param(lambda inner: dict(type="ConcatDataset", datasets=[inner, inner]), id="ConcatDataset"),
    ],
)
def test_wrapped_data_sets_are_checked(
    shapes: Path,
    detector: Runner,
    cfg: Config,
    monkeypatch: pytest.MonkeyPatch,
    wrap: Callable[[dict], dict],
) -> None:
    cfg.train_dataloader.dataset = wrap(cfg.train_dataloader.dataset)
    DataCheckHook().check_annotation_files(detector, TRAINING)
    loader = detector.build_dataloader(cfg.train_dataloader)
    assert len(loader.dataset) in (8, 12)
    monkeypatch.setattr(detector.train_loop, "dataloader", loader)
    DataCheckHook().before_train(detector)
    edit_json(shapes / "annotations/instances_train.json", lambda content: add_box(content, 60, 20, 10, 10))
    with pytest.raises(DataError, match="annotation 999"):
        DataCheckHook().check_annotation_files(detector, TRAINING)
    with pytest.raises(DataError, match="annotation 999"):
        DataCheckHook().before_train(detector)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        pytest.param(Path.unlink, "is missing: expected the file_name", id="missing"),
        pytest.param(lambda p: p.write_bytes(p.read_bytes()[:99]), "cannot be read: ", id="truncated"),
        pytest.param(lambda p: set_labels(p, 48, 60, 3), "is 60 x 48 and its annotation file says 64 x 48", id="size"),
    ],
)
@pytest.mark.parametrize(("split", "scene", "before"), SPLITS)
def test_image_not_in_order_is_named(
    shapes: Path, detector: Runner, split: str, scene: int, before: str, spoil: Callable[[Path], object], expected: str
) -> None:
    hook = DataCheckHook()
    getattr(hook, f"before_{before}")(detector)
    path = shapes / f"images/scene_{scene}.jpg"
    spoil(path)
    with pytest.raises(DataError, match=rf"'{path}' {expected}"):
        getattr(hook, f"before_{before}")(detector)


@pytest.mark.parametrize(("split", "scene", "before"), SPLITS)
def test_annotations_are_checked_under_other_tools_too(
    shapes: Path, detector: Runner, split: str, scene: int, before: str
) -> None:
    path = shapes / f"annotations/instances_{split}.json"
    edit_json(path, lambda content: content["categories"].reverse())
    with pytest.raises(DataError, match=rf"'{path}' lists the categories in another order .*classes=disc,square"):
        getattr(DataCheckHook(), f"before_{before}")(detector)


def test_way_that_the_pipeline_reads_images_is_the_one_that_counts(
    shapes: Path, detector: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    with Image.open(shapes / "images/scene_5.jpg") as image:
        image.save(shapes / "images/scene_5.jpg", exif=exif)
    with pytest.raises(DataError, match="is 48 x 64 and its annotation file says 64 x 48.*color_ignore_orientation"):
        DataCheckHook().before_test(detector)
    reading = detector.test_loop.dataloader.dataset.pipeline.transforms[0]
    monkeypatch.setattr(reading, "color_type", "color_ignore_orientation")
    DataCheckHook().before_test(detector)


@pytest.mark.parametrize("head", ["roi_head.bbox_head", "roi_head.mask_head"])
@pytest.mark.parametrize("task", ["train", "test"])
def test_detection_head_built_for_another_number_of_classes_is_named(
    shapes: Path, detector: Runner, monkeypatch: pytest.MonkeyPatch, head: str, task: str
) -> None:
    monkeypatch.setattr(detector.model.get_submodule(head), "num_classes", 80)
    expected = rf"^{task}_dataloader: the data set has 2 classes and '{head}' was built for 80: set num_classes"
    with pytest.raises(DataError, match=expected):
        getattr(DataCheckHook(), f"before_{task}")(detector)


def test_two_processes_share_the_work_and_raise_the_same_error(detection_config: Config, coco_root: Path) -> None:
    detection_config.launcher = "pytorch"
    detection_config.model_wrapper_cfg = dict(type="MMDistributedDataParallel", device_ids=None)
    for loader in (detection_config.train_dataloader, detection_config.val_dataloader):
        loader.dataset.data_root = coco_root.name  # below the folder where the script starts
    folder = coco_root.parent
    detection_config.dump(folder / "config.py")
    code = """
        import json, os, pathlib, torch
        import apla_mm
        from helpers.data_sets import edit_json
        from mmengine.config import Config
        from mmengine.runner import Runner
        from apla_mm.data.reading import DataError
        from apla_mm.data.data_check_hook import DataCheckHook

        rank = int(os.environ["RANK"])
        torch.distributed.init_process_group("gloo")  # mmengine's own start wants a GPU
        runner = Runner.from_cfg(Config.fromfile("config.py"))
        loaders = ("train_dataloader", "val_dataloader")
        train, val = runner.train_loop.dataloader, runner.val_loop.dataloader
        pathlib.Path("elsewhere").mkdir(exist_ok=True)
        root = pathlib.Path(train.dataset.data_root).absolute()

        def error_of(check):
            torch.distributed.barrier()
            try:
                check()
            except (DataError, RuntimeError) as error:
                return f"{type(error).__name__}: {error}"

        def away(check):
            if rank:
                os.chdir("elsewhere")  # from here the annotation files cannot be read
            error = error_of(check)
            if rank:
                os.chdir("..")
            return error

        hook = DataCheckHook()
        errors = [away(lambda: hook.check_annotation_files(runner, loaders))]
        errors.append(error_of(lambda: hook.before_train(runner)))
        if not rank:
            (root / "images/scene_1.jpg").unlink()  # of the second process's share
        errors.append(error_of(lambda: hook.before_train(runner)))
        if not rank:
            path = root / "annotations/instances_val.json"
            edit_json(path, lambda content: content["annotations"][0].update(image_id=77))
        errors.append(away(lambda: hook.check_annotation_files(runner, loaders)))
        (pathlib.Path.cwd() / f"rank{rank}.json").write_text(json.dumps(errors))
    """
    run_ranks(code, folder)
    first, second = (json.loads((folder / f"rank{rank}.json").read_text()) for rank in (0, 1))
    # the process that found it says so; in the other it is told of
    told = [(a, b) if a is None or a.startswith("DataError") else (b, a) for a, b in zip(first, second, strict=True)]
    assert all(other == (one and f"RuntimeError: rank {'01'[one in second]} failed: {one}") for one, other in told)
    first = [one for one, _ in told]
    in_order, images_in_order, missing, unknown_image = first
    assert in_order is None and images_in_order is None
    assert "annotation 100 has the image_id 77, which none of the images has" in unknown_image
    assert "scene_1.jpg' is missing" in missing


def test_panoptic_data_are_checked_in_files_maps_and_heads(tmp_path: Path, read_log: Callable[[], str]) -> None:
    root = write_panoptic(tmp_path / "shapes")
    options = dict(data_root=str(root), thing_classes=["square", "disc"], stuff_classes=["ground"])
    for loader, split in (("train_dataloader", "train"), ("val_dataloader", "val"), ("test_dataloader", "val")):
        prefix = dict(img="images/", seg=f"annotations/panoptic_{split}/")
        options |= {f"{loader}.dataset.ann_file": f"annotations/panoptic_{split}.json"}
        options |= {f"{loader}.dataset.data_prefix.{key}": value for key, value in prefix.items()}
    args = dict(config=str(PANOPTIC), work_dir=str(tmp_path / "work"), launcher="none", local_rank=0)

    def make(stuff: int = 1) -> Runner:
        cfg = load_config(argparse.Namespace(**args, cfg_options=options))
        assert cfg.val_evaluator.seg_prefix == f"{root}/annotations/panoptic_val/"
        shrink(cfg)
        cfg.model.panoptic_head.num_stuff_classes = stuff
        cfg.experiment_name = uuid.uuid4().hex
        return build_runner(cfg)

    make().train()
    assert "8 segments of 2 kinds of things" in read_log()
    assert "train_dataloader: 4 of 4 samples read and found in order" in read_log()
    assert "coco_panoptic/PQ" in read_log()
    path = root / "annotations/panoptic_train/scene_3.png"
    kept = path.read_bytes()
    Image.open(path).resize((32, 24)).save(path)
    with pytest.raises(DataError, match=f"the panoptic map '{path}' has 32 x 24 pixels"):
        make().train()
    path.write_bytes(kept)
    with pytest.raises(DataError, match="2 classes of things, 1 of stuff, and 'panoptic_head' was built for 2 and 4"):
        make(stuff=4).train()
    edit_json(root / "annotations/panoptic_val.json", lambda content: content["categories"].reverse())
    with pytest.raises(DataError, match="label 0 would be 'ground'"):
        make()


def test_images_of_classes_are_logged_and_one_that_cannot_be_read_stops_training(
    classification_config: Config, folders_root: Path, read_log: Callable[[], str]
) -> None:
    build_runner(classification_config).train()
    log = read_log()
    assert "train_dataloader: images of each of 3 classes: dark 4, light 4, red 4" in log
    assert "train_dataloader: 12 of 12 samples read and found in order\n" in log
    assert "val_dataloader: 6 of 6 samples read and found in order\n" in log
    (folders_root / "train/red/2.jpg").write_bytes(b"no image")
    classification_config.experiment_name = "again"
    with pytest.raises(DataError, match=r"the image '.*/train/red/2\.jpg' cannot be read"):
        build_runner(classification_config).train()


def test_a_head_with_another_number_of_classes_than_folders_is_an_error(classification_config: Config) -> None:
    classification_config.model.head.num_classes = 5
    with pytest.raises(DataError, match="the data set has 3 classes and 'head' was built for 5"):
        Runner.from_cfg(classification_config).train()
